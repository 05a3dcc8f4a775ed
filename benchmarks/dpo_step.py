"""Pairs per second of a DPO update, ours and a PyTorch step with TRL's loss, on the same weights, pairs and cores.

    python benchmarks/dpo_step.py [--size 4M 30M 110M] [--runs 3] [--threads 2] [--quick] [--json]

A pair has 2048 visual tokens, 64 tokens of prompt and two responses of 256. Ours counts one scoring of every pair under
the reference for every update of it, as an iteration of one epoch needs it. The peer updates once with the reference's
forward in the step, as TRL does for vision, and once with log-probs that it is given and that cost it nothing. Tower
features are given to both. The two go on from update to update side by side, and must have the same log-probs and
losses; in one run each update of the peer follows one of ours. Below stands what bounds the ratio: how many positions
sharing the prefix saves, and how near useful FLOPs (`plan.useful`) come to the rate of one large product of this model
on these cores. `--quick` leaves the largest size out.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rows import Row, rate_row, show
from torch_peer import TorchPeer, use_threads, write_weights

from isrdpo_jax.data.packing import PairTokens, pack_pairs
from isrdpo_jax.models.video_llava import abstract_params, init, logical_axes
from isrdpo_jax.plan.useful import UsefulFlops
from isrdpo_jax.plan.workload import Workload
from isrdpo_jax.programs.dpo_step import PairBatch, dpo_step, pair_logprobs
from isrdpo_jax.programs.packed import PackedRows
from isrdpo_jax.programs.update import create_state
from isrdpo_jax.schema import DpoConfig, LlamaConfig, MeshConfig, ModelConfig, VisionConfig
from isrdpo_jax.sharding import batch_sharding, make_mesh, parameter_shardings, replicated
from isrdpo_jax.stages.optimize import make_optimizer
from isrdpo_jax.stages.pair_batches import micro_batches

BEFORE, TURN, RESPONSE = 32, 32, 256  # tokens before the video, behind it, and of each response
TOLERANCE = 1e-3  # of losses, and of log-probs relative to their size
FLOOR, FROM_PARAMETERS = 2.0, 100e6  # against the peer with the reference's forward, from so many parameters up


def model(d: int, mlp: int, layers: int, vocabulary: int, image_size: int = 224) -> ModelConfig:
    """A decoder of these sizes behind 8 frames of patches; the tower is not run, its features are given."""
    vision = VisionConfig(image_size=image_size, hidden_size=256, intermediate_size=256, num_layers=2, num_heads=4)
    llama = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=d,
        intermediate_size=mlp,
        num_layers=layers,
        num_heads=d // 64,
        num_kv_heads=d // 64,
    )
    return ModelConfig(vision=vision, llama=llama, remat="dots")


SIZES = {
    "4M": model(256, 688, 4, 2048),
    "30M": model(512, 1376, 8, 4096),
    "110M": model(768, 2048, 12, 16384),
    "smoke": model(64, 64, 2, 512, image_size=28),  # to see that the program works; its figures mean nothing
}


@dataclass(frozen=True)
class Inputs:
    """Random pairs without padding. features: float32[b, n, d_vision]; the others: int64[b, tokens]."""

    features: np.ndarray
    before: np.ndarray
    turn: np.ndarray
    chosen: np.ndarray
    rejected: np.ndarray

    @staticmethod
    def draw(config: ModelConfig, pairs: int) -> Inputs:
        rng = np.random.default_rng(0)
        vision, words = config.vision, config.llama.vocab_size
        features = rng.normal(size=(pairs, vision.tokens_per_video, vision.hidden_size)).astype(np.float32)
        before = np.tile(rng.integers(3, words, BEFORE), (pairs, 1))
        return Inputs(features, before, *(rng.integers(3, words, (pairs, n)) for n in (TURN, RESPONSE, RESPONSE)))


class Ours:
    """The reference pass and the update, as the stages `reference` and `optimize` run them on a batch."""

    def __init__(self, config: ModelConfig, params: Any, inputs: Inputs, dpo: DpoConfig):
        mesh = make_mesh(MeshConfig(), jax.devices()[:1])
        params = jax.device_put(params, parameter_shardings(mesh, logical_axes(config), abstract_params(config)))
        self.config, self.dpo, self.params = config, dpo, params
        self.optimizer = make_optimizer(dpo)
        self.state = create_state(jax.tree.map(jnp.copy, params["llama"]), self.optimizer)
        self.frozen = {name: value for name, value in params.items() if name != "llama"}
        self.prefix_ids = jax.device_put(inputs.before[0].astype(np.int32), replicated(mesh))
        pairs = [
            PairTokens(tuple(turn), tuple(chosen), tuple(rejected))
            for turn, chosen, rejected in zip(inputs.turn, inputs.chosen, inputs.rejected, strict=True)
        ]
        rows, mask = pack_pairs(pairs, BEFORE + config.vision.tokens_per_video, TURN, RESPONSE)
        zeros, ones = np.zeros((len(pairs), 2), np.float32), np.ones(len(pairs), np.float32)
        whole = PairBatch(inputs.features, PackedRows(*rows), mask, zeros, ones)
        steps = dpo.accumulation_steps
        split = jax.tree.map(lambda x: x.reshape(steps, -1, *x.shape[1:]), whole)
        self.batches = jax.device_put(split, batch_sharding(mesh, axis=1))

    def logps(self) -> np.ndarray:
        """Sequence log-probs under the reference: float32[b, 2]."""
        scored = [
            np.asarray(pair_logprobs(self.params, self.prefix_ids, micro, config=self.config, dpo=self.dpo))
            for micro in micro_batches(self.batches)
        ]
        return np.concatenate(scored)

    def step(self, reference: np.ndarray) -> float:
        """One update; returns its loss."""
        before = self.batches.reference
        stored = jax.device_put(reference.reshape(before.shape), before.sharding)
        self.state, metrics = dpo_step(
            self.state,
            self.frozen,
            self.prefix_ids,
            self.batches._replace(reference=stored),
            np.float32(self.dpo.learning_rate),
            config=self.config,
            dpo=self.dpo,
            optimizer=self.optimizer,
        )
        return float(jax.block_until_ready((self.state, metrics))[1]["loss"])


def check_same(what: str, ours: Any, peer: Any, size: float) -> None:
    """Raises:
    SystemExit: ours and the peer's are not the same computation.
    """
    difference = np.abs(np.asarray(ours, np.float64) - np.asarray(peer, np.float64)).max()
    if not difference <= TOLERANCE * size:
        raise SystemExit(f"{what}: ours {ours} and the peer's {peer} differ by {difference:.3g}; nothing is compared.")


def compare(size: str, pairs: int, runs: int, threads: int) -> tuple[list[Row], dict[str, str]]:
    """The rows of one size, and the peer's versions."""
    config = SIZES[size]
    dpo = DpoConfig(batch_size=pairs, accumulation_steps=pairs)
    inputs = Inputs.draw(config, pairs)
    params = jax.jit(init, static_argnums=0)(config, jax.random.key(0))
    parameters = sum(leaf.size for leaf in jax.tree.leaves(params["llama"]))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_weights(folder, config, params)
        np.savez(folder / "inputs.npz", **vars(inputs))
        settings = {"pairs": pairs, "micro_batch": 1, "beta": dpo.beta, "lr": dpo.learning_rate, "eps": dpo.eps}
        settings |= {"b1": dpo.b1, "b2": dpo.b2, "weight_decay": dpo.weight_decay}
        (folder / "settings.json").write_text(json.dumps(settings))
        with TorchPeer("torch_peer_dpo.py", folder, threads) as peer:
            times = measure(size, Ours(config, params, inputs, dpo), peer, runs)
            facts = peer.facts
    seconds = statistics.median(times["score"]) + statistics.median(times["step"])
    bounds = what_bounds(config, pairs, seconds, len(times["live"]))
    both = [score + step for score, step in zip(times["score"], times["step"], strict=True)]
    floor = FLOOR if parameters >= FROM_PARAMETERS else None
    told = f"{size} ({parameters / 1e6:.1f}M)"
    rows = [
        rate_row(f"{told}: reference forward in the peer's step", pairs, both, times["live"], floor, "pairs/s"),
        rate_row(f"{told}: reference given to the peer", pairs, both, times["given"], None, "pairs/s"),
        rate_row(f"{told}: reference given to both", pairs, times["step"], times["given"], None, "pairs/s"),
        *bounds,
    ]
    return rows, facts


def what_bounds(config: ModelConfig, pairs: int, seconds: float, runs: int) -> list[Row]:
    """What sharing the prefix saves, and how fast a scoring and a step that take `seconds` compute what is needed."""
    prefix = BEFORE + config.vision.tokens_per_video
    work = Workload(1, 1, pairs, BEFORE, TURN, 0, 0, RESPONSE, 0, 0, prefix, describes=False)
    useful = UsefulFlops(config, work)
    ours = (useful.pair_forward(pairs) + useful.preference_step(pairs, adapters=False)).total / seconds / 1e9
    shared, apart = prefix + TURN + 2 * RESPONSE, 2 * (prefix + TURN + RESPONSE)
    product = product_rate(shared, config.llama.hidden_size, config.llama.intermediate_size)
    return [
        Row("  positions of a pair: prefix shared : two rows", shared, apart, apart / shared, None, "positions", runs),
        Row("  useful FLOPs : one large product", ours, product, ours / product, None, "GFLOP/s", runs),
    ]


def product_rate(n: int, i: int, o: int) -> float:
    """GFLOP/s of [n, i] @ [i, o] in float32, the best of a few."""
    x, w = jnp.ones((n, i)), jnp.ones((i, o))
    multiply = jax.jit(jnp.matmul)
    times = []
    for _ in range(6):
        began = time.perf_counter()
        jax.block_until_ready([multiply(x, w) for _ in range(8)])
        times.append(time.perf_counter() - began)
    return 8 * 2 * n * i * o / min(times) / 1e9


def measure(size: str, ours: Ours, peer: TorchPeer, runs: int) -> dict[str, list[float]]:
    """Seconds of every run: of our scoring and step, and of the peer's step both ways. A first run is not counted."""
    reference = ours.logps()
    theirs = np.array(peer.ask("logps"))
    check_same(f"{size}: log-probs", reference, theirs, np.abs(reference).max())
    # One that the policy is not, so that losses, and with them the check, depend on all that is computed.
    given = reference + np.float32([3.0, -3.0])
    times: dict[str, list[float]] = {"score": [], "step": [], "live": [], "given": []}
    for run in range(runs + 1):
        for way in ("live", "given"):
            began = time.perf_counter()
            scored = ours.logps()
            between = time.perf_counter()
            loss = ours.step(scored if way == "live" else given)
            ended = time.perf_counter()
            answer = peer.ask("step", reference=None if way == "live" else given.tolist())
            check_same(f"{size}: loss of run {run}", loss, answer["loss"], max(1.0, loss))
            seconds = {"score": between - began, "step": ended - between, way: answer["seconds"]}
            told = ", ".join(f"{name} {value:.2f} s" for name, value in seconds.items())
            what = f"run {run}" if run else "first run, not counted"
            print(f"{size} {what}: {told}; loss {loss:.5f} {answer['loss']:.5f}", file=sys.stderr, flush=True)
            if run:
                for name, value in seconds.items():
                    times[name].append(value)
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--size", nargs="+", choices=SIZES, default=["4M", "30M", "110M"])
    parser.add_argument("--pairs", type=int, default=1, help="per update, one at a time")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    use_threads(args.threads)
    rows: list[Row] = []
    facts: dict[str, str] = {}
    for size in [size for size in args.size if not (args.quick and size == "110M")]:
        some, facts = compare(size, args.pairs, args.runs, args.threads)
        rows += some
    how = {"threads": args.threads, "dtype": "float32", "jax": jax.__version__, **facts, "cpus": os.cpu_count()}
    show("dpo_step", rows, args.json, **how)


if __name__ == "__main__":
    main()

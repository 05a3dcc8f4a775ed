"""Videos per second of a collect (two responses, a description, both orders of a verdict), ours and transformers'.

    python benchmarks/collect.py [--size 4M 110M] [--videos 12] [--runs 3] [--threads 2] [--quick] [--json]

Ours is `stages.collect.collect` as a run calls it; the tower's features are kept from an earlier iteration, and the
peer is given them, too. The weights are random, but for a head that ends a text behind every token with about the same
probability, so that lengths have a long tail. What ours says is determined by its seed: every run makes the same
tokens. Beside it stand the same engine that asks one thing at a time about one video at a time (what sharing the prefix
brings), and one that takes two videos and says all that they need at once, and two more when all is said (what saying
things together brings; the rest is slots that stay full).

The peer, `generate` in PyTorch, gets the same weights, features, prompts and sampling, and is told for every request
after how many tokens it ends: those that ours made. The log-odds of its verdicts must be ours. It runs request by
request, and in batches of the size that was the fastest in a first round. Ours does all videos in every run; behind it,
all that stands beside it, whose seconds are those of its videos added up, gets the run's share of them: every third in
three runs. `--quick` leaves the larger size out and takes four videos.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rows import Row, rate_row, show
from torch_peer import TorchPeer, use_threads, write_weights

from isrdpo_jax.data.feature_cache import FeatureCache
from isrdpo_jax.data.prompts import load_prompts
from isrdpo_jax.data.records import Question, Video
from isrdpo_jax.data.tokens import Tokenizer, load_tokenizer
from isrdpo_jax.models.video_llava import Params, abstract_params, init, logical_axes
from isrdpo_jax.schema import (
    CollectConfig,
    Config,
    DataConfig,
    DescribeConfig,
    LlamaConfig,
    MeshConfig,
    ModelConfig,
    SamplingConfig,
    VisionConfig,
)
from isrdpo_jax.sharding import make_mesh, parameter_shardings
from isrdpo_jax.stages.collect import Rows, collect, collect_engine
from isrdpo_jax.stages.judge import Case, both_orders
from isrdpo_jax.stages.policy import Policy, encode_frames
from isrdpo_jax.stages.tally import Tally
from isrdpo_jax.weights.policy_folder import packaged_tokenizer

Share = Sequence[Video]

TOLERANCE = 1e-4  # of the verdicts' log-odds, nats
FLOORS = {"request by request": 5.0, "in batches": 2.0}
SLOT_USE = 0.85
HELD, SLOTS = 4, 4  # videos that ours holds, and texts that it says about two of them
MEAN_TOKENS = 40  # of a response or description; most tokens are `--max-tokens`
PEER_BATCHES = (2, 4)


def model(d: int, mlp: int, layers: int, image_size: int = 224) -> ModelConfig:
    """A decoder of these sizes with the packaged words, and a small tower in front of 8 frames of patches."""
    vision = VisionConfig(image_size=image_size, hidden_size=256, intermediate_size=1024, num_layers=4, num_heads=4)
    llama = LlamaConfig(
        vocab_size=load_tokenizer(packaged_tokenizer("shapes")).vocab_size,
        hidden_size=d,
        intermediate_size=mlp,
        num_layers=layers,
        num_heads=d // 64,
        num_kv_heads=d // 64,
    )
    return ModelConfig(vision=vision, llama=llama)


SIZES = {
    "4M": (256, 688, 5),
    "110M": (768, 2048, 15),
    "smoke": (64, 64, 2, 28),  # to see that the program works; its figures mean nothing
}


def speak(params: Params, tokenizer: Tokenizer, words: int) -> Params:
    """Makes the decoder say words, and end behind each with a probability of about 1 / MEAN_TOKENS.

    A direction of the residual stream that no layer writes to is a constant, and so a bias of the head.
    """
    llama = jax.tree.map(np.array, params["llama"])
    d = llama["embedding"].shape[1]
    llama["embedding"][:, 0] = 2.0 * d**0.5  # much longer than all that the layers write
    for name in ("out", "down"):
        llama["layers"][name]["kernel"][..., 0] = 0.0
    bias = np.zeros(words)
    spoken = np.array([bool(tokenizer.decode([i])) and tokenizer.decode([i]).isalpha() for i in range(words)])
    bias[~spoken] = -20.0
    bias[tokenizer.eos_id] = np.log(spoken.sum() / MEAN_TOKENS)
    llama["head"][0] = bias / d**0.5  # what the last norm makes of the constant
    return {**params, "llama": llama}


def make_policy(size: str) -> Policy:
    config, tokenizer = model(*SIZES[size]), load_tokenizer(packaged_tokenizer("shapes"))
    random = jax.jit(init, static_argnums=0)(config, jax.random.key(0))
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    shardings = parameter_shardings(mesh, logical_axes(config), abstract_params(config))
    params = jax.device_put(speak(random, tokenizer, config.llama.vocab_size), shardings)
    return Policy(config, params, tokenizer, load_prompts(), mesh, digest="random")


def make_videos(config: VisionConfig, count: int, questions: int) -> list[Video]:
    """Frames of noise, with so many questions each."""
    rng = np.random.default_rng(0)
    shape = (config.num_frames, config.image_size, config.image_size, 3)
    question = "What does the object do that enters last?"
    return [
        Video(
            f"{i}",
            rng.integers(0, 256, shape, np.uint8),
            tuple(Question(f"{i}/{j}", question) for j in range(questions)),
            None,
            (),
        )
        for i in range(count)
    ]


def collect_all(
    policy: Policy,
    videos: Sequence[Video],
    config: Config,
    previous: Mapping[str, str],
    at_a_time: int | None = None,
    iteration: int = 2,
) -> tuple[Rows, Tally]:
    """All videos as one stream, or so many at a time, each time to the end."""
    with kept_features(policy, config) as kept:
        return _collect_all(policy, videos, config, previous, at_a_time, iteration, kept)


def kept_features(policy: Policy, config: Config) -> FeatureCache:
    vision = policy.config.vision
    shape = (vision.tokens_per_video, vision.hidden_size)
    return FeatureCache(Path(config.data.dir), {"tower": policy.digest}, shape, np.float32, limit=2**34)


def _collect_all(
    policy: Policy,
    videos: Sequence[Video],
    config: Config,
    previous: Mapping[str, str],
    at_a_time: int | None,
    iteration: int,
    kept: FeatureCache,
) -> tuple[Rows, Tally]:
    engine = collect_engine(policy, config, iteration, kept)
    rows: dict[str, list[Any]] = {kind: [] for kind in vars(Rows())}
    size = config.collect.batch_videos
    for start in range(0, len(videos), at_a_time or len(videos)):
        some = videos[start : start + (at_a_time or len(videos))]
        batches = {n: range(n * size, min((n + 1) * size, len(some))) for n in range(-(-len(some) // size))}
        for _, made in sorted(collect(engine, some, batches, config, previous=previous), key=lambda one: one[0]):
            for kind, those in rows.items():
                those += getattr(made, kind)
    return Rows(**rows), engine.tally


def peer_requests(policy: Policy, batch: Rows, previous: Mapping[str, str]) -> dict[str, list[dict[str, Any]]]:
    """What the peer is asked, phase by phase: the prompts of ours, and how many tokens ours made."""
    prompts, encode = policy.prompts, policy.tokenizer.encode_turn
    responses = [
        {"video": int(row["video"]), "turn": encode(prompts.answer(row["question"])), "count": len(one["tokens"])}
        for row in batch.responses
        for one in row["responses"]
    ]
    descriptions = [
        {
            "video": int(row["video"]),
            "turn": encode(prompts.describe(previous[row["video"]] or None)),
            "count": len(row["tokens"]),
        }
        for row in batch.descriptions
    ]
    verdicts = []
    for row, judged in zip(batch.responses, batch.judgements, strict=True):
        if judged["log_odds"] is not None:
            first, second = (one["text"] for one in row["responses"])
            case = Case(row["question"], (first, second), judged["context"])
            turns = both_orders(case, prompts)
            verdicts += [{"video": int(row["video"]), "turn": encode(turn)} for turn in turns]
    return {"respond": responses, "describe": descriptions, "judge": verdicts}


def log_odds(batch: Rows, videos: Collection[str]) -> np.ndarray:
    """log p(A) - log p(B) of every verdict about these, in the order of the peer's requests."""
    told = [row["log_odds"] for row in batch.judgements if row["log_odds"] is not None and row["video"] in videos]
    return np.array([sign * odds for pair in told for sign, odds in zip((1, -1), pair, strict=True)])


def check_same(ours: np.ndarray, peer: Sequence[float]) -> None:
    """Compares the verdicts' log-odds.

    Raises:
        SystemExit: the peer's model or prompts are not ours.
    """
    difference = np.abs(ours - np.array(peer)).max() if len(ours) == len(peer) else np.inf
    if not difference <= TOLERANCE:
        raise SystemExit(
            f"verdicts: ours {ours} and the peer's {peer} differ by {difference:.3g}; nothing is compared."
        )
    print(f"{len(ours)} verdicts' log-odds differ by at most {difference:.2g} nats", file=sys.stderr)


def timed(what: str, function: Any, *args: Any) -> tuple[float, Any]:
    began = time.perf_counter()
    out = function(*args)
    seconds = time.perf_counter() - began
    print(f"{what}: {seconds:.2f} s", file=sys.stderr, flush=True)
    return seconds, out


def peer_collect(peer: TorchPeer, at_once: int, batch: Rows, phases: dict[str, Any], share: Share, what: str) -> float:
    """Seconds of a collect of these videos by the peer, which must say as many tokens and judge the same."""
    videos = [int(video.id) for video in share]
    odds = log_odds(batch, {video.id for video in share})
    asked = [one for phase in ("respond", "describe") for one in phases[phase]]
    tokens = sum(one["count"] for one in asked if one["video"] in videos)
    answer = peer.ask("collect", batch=at_once, videos=videos)
    told = ", ".join(f"{phase} {seconds:.2f} s" for phase, seconds in answer["seconds"].items())
    print(f"{what}: {told}; {answer['tokens']} tokens", file=sys.stderr, flush=True)
    if answer["tokens"] != tokens:
        raise SystemExit(f"the peer made {answer['tokens']} tokens and ours {tokens}; nothing is compared.")
    check_same(odds, answer["log_odds"])
    return sum(answer["seconds"].values())


def compare(
    size: str, count: int, questions: int, max_tokens: int, runs: int, threads: int, scratch: Path
) -> tuple[list[Row], dict]:
    """The rows of one size, and the peer's versions."""
    policy = make_policy(size)
    videos = make_videos(policy.config.vision, count, questions)
    # A slot has room for the longest turn that is continued: a description and the words around it.
    full = CollectConfig(batch_videos=min(HELD, count), lanes=1, slots=SLOTS, turn_tokens=max_tokens + 64)
    config = Config(
        sampling=SamplingConfig(max_new_tokens=max_tokens, keep_unfinished=True),
        describe=DescribeConfig(max_new_tokens=max_tokens, temperature=1.0),
        collect=full,
        data=DataConfig(dir=str(scratch / size)),
    )

    def held(videos: int, slots: int) -> Config:
        return config.model_copy(update={"collect": full.model_copy(update={"batch_videos": videos, "slots": slots})})

    ways: dict[str, tuple[Config, int | None]] = {
        "ours": (config, None),
        "ours, one thing at a time": (held(1, 1), None),
        "ours, two videos at once": (held(2, 2 * (2 * questions + 1)), 2),
    }
    first, _ = collect_all(policy, videos, config, {}, iteration=1)
    previous = {row["video"]: row["text"] for row in first.descriptions}
    made = {
        key: timed(f"{size} {key}, first run, not counted", collect_all, policy, videos, how, previous, at_a_time)[1]
        for key, (how, at_a_time) in ways.items()
    }
    batch, tally = made["ours"]
    phases = peer_requests(policy, batch, previous)
    lengths = [one["count"] for phase in ("respond", "describe") for one in phases[phase]]
    print(f"{size} tokens: {sorted(lengths)}; {len(phases['judge'])} verdicts; {tally.figures()}", file=sys.stderr)
    times: dict[str, list[float]] = {key: [] for key in (*ways, "request by request", "in batches")}
    shares = [videos[run::runs] for run in range(runs)]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_weights(folder, policy.config, policy.params)
        features = np.asarray(encode_frames(policy, [video.frames for video in videos]), np.float32)
        np.savez(folder / "inputs.npz", features=features, prefix_ids=np.array(policy.prefix_ids))
        settings = {"phases": phases, "letters": policy.tokenizer.letter_ids}
        settings |= {"temperature": config.sampling.temperature, "top_p": config.sampling.top_p}
        (folder / "settings.json").write_text(json.dumps(settings))
        with TorchPeer("torch_peer_collect.py", folder, threads) as peer:

            def ask(at_once: int, share: Share, what: str) -> float:
                return peer_collect(peer, at_once, batch, phases, share, f"{size} {what}")

            sizes = [size for size in PEER_BATCHES if size <= 2 * len(shares[0])]
            best = min(sizes, key=lambda n: ask(n, shares[0], f"peer, {n} at a time, first round"))
            for run, share in enumerate(shares, 1):
                for key, (how, at_a_time) in ways.items():
                    some = videos if key == "ours" else share
                    seconds, (again, _) = timed(
                        f"{size} run {run} {key}", collect_all, policy, some, how, previous, at_a_time
                    )
                    times[key].append(seconds)
                    if key == "ours" and again != batch:
                        raise SystemExit("ours did not say the same again; nothing is compared.")
                for key, at_once in (("request by request", 1), ("in batches", best)):
                    times[key].append(ask(at_once, share, f"run {run} peer {key}"))
            facts = peer.facts
    return make_rows(size, policy, times, best, tally, count), facts


def make_rows(
    size: str, policy: Policy, times: dict[str, list[float]], best: int, tally: Tally, videos: int
) -> list[Row]:
    parameters = sum(leaf.size for leaf in jax.tree.leaves(policy.params["llama"]))
    told = f"{size} ({parameters / 1e6:.1f}M, {policy.config.vision.tokens_per_video} visual)"
    ours = times["ours"]
    prefix, batched, requests, batches = ([sum(shares)] for key, shares in times.items() if key != "ours")
    used = tally.figures()["slot_use"]
    pairs = [
        (f"{told}: generate, request by request", ours, requests, FLOORS["request by request"]),
        (f"{told}: generate, {best} at a time", ours, batches, FLOORS["in batches"]),
        ("  prefix: ours, one thing at a time : requests", prefix, requests, None),
        ("  together: two videos at once : one thing", batched, prefix, None),
        ("  full slots: ours : two videos at once", ours, batched, None),
    ]
    rows = [rate_row(case, videos, mine, theirs, floor, "videos/s") for case, mine, theirs, floor in pairs]
    rows.append(Row("  slot use while decoding", used, None, used / SLOT_USE, 1.0, "share", len(ours)))
    return [replace(row, runs=len(ours)) for row in rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--size", nargs="+", choices=SIZES, default=["4M", "110M"])
    parser.add_argument("--videos", type=int, default=12)
    parser.add_argument("--questions", type=int, default=2, help="about every video")
    parser.add_argument("--max-tokens", type=int, default=160, help="most tokens of a response or description")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    use_threads(args.threads)
    rows: list[Row] = []
    facts: dict[str, str] = {}
    videos = min(args.videos, 4) if args.quick else args.videos
    for size in [size for size in args.size if not (args.quick and size == "110M")]:
        with tempfile.TemporaryDirectory() as scratch:
            some, facts = compare(size, videos, args.questions, args.max_tokens, args.runs, args.threads, Path(scratch))
        rows += some
    how = {"threads": args.threads, "dtype": "float32", "jax": jax.__version__, **facts, "cpus": os.cpu_count()}
    show("collect", rows, args.json, **how)


if __name__ == "__main__":
    main()

"""Programs are compiled once per bucket, whatever they read, in every update and every iteration."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import jax
import numpy as np
import pytest
from tiny import PREFIX_IDS, PREFIX_LENGTH, TINY, random_pairs, random_params, random_pixels
from tiny_policy import noise_video, tiny_policy

from isrdpo_jax.data.packing import Segment, pack_segments
from isrdpo_jax.models.video_llava import abstract_params, logical_axes
from isrdpo_jax.programs.packed import PackedRows
from isrdpo_jax.programs.sft_step import SftBatch, sft_step
from isrdpo_jax.programs.update import adamw, create_state
from isrdpo_jax.runs.atomic import read_jsonl
from isrdpo_jax.runs.layout import IterationLayout, RunLayout
from isrdpo_jax.runs.preemption import StopSignal
from isrdpo_jax.schema import CollectConfig, Config, DpoConfig, MeshConfig
from isrdpo_jax.sharding import batch_sharding, make_mesh, parameter_shardings
from isrdpo_jax.stages.dialogue import Decoding, Say, Sight, Weigh
from isrdpo_jax.stages.engine import Engine
from isrdpo_jax.stages.optimize import optimize
from isrdpo_jax.stages.pair_batches import PairSet, epoch_order
from isrdpo_jax.stages.policy import Policy
from isrdpo_jax.stages.reference import score_pairs

PROGRAMS = {
    *("encode", "prefill", "_place", "read", "decode", "next_token_logprobs"),
    *("pair_logprobs", "dpo_step", "sft_step"),
}
HOW = Decoding(4, 1.0, 0.9)
DPO = DpoConfig(batch_size=8, accumulation_steps=2, learning_rate=1e-3)
VIDEOS = [noise_video(name) for name in "abc"]


@contextmanager
def compilations() -> Iterator[Counter]:
    """How often each program was compiled inside."""
    counts: Counter = Counter()

    def listen(event: str, duration: float, **facts) -> None:
        name = facts.get("fun_name", "").removeprefix("jit(").removesuffix(")")
        if event.endswith("/backend_compile_duration") and name in PROGRAMS:
            counts[name] += 1

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield counts
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


def ask(engine: Engine, videos, text: str) -> None:
    def interview(video):
        (said,) = yield [Say(text, video.id, HOW, "respond")]
        yield [Weigh(text, policy_letters)]
        return said

    policy_letters = engine.policy.tokenizer.letter_ids
    visits = [lambda video=video: (interview(video), Sight(video.frames)) for video in videos]
    assert len(list(engine.converse(visits))) == len(videos)


def test_questions_of_one_bucket_share_their_programs():
    policy = tiny_policy()
    hall = CollectConfig(batch_videos=3, lanes=3)  # which no other test has
    asking = {"encode": 1, "prefill": 1, "_place": 1, "read": 1, "decode": 1, "next_token_logprobs": 1}
    with compilations() as counts:
        ask(Engine(policy, hall, [HOW], iteration=1), VIDEOS, "What?")
        assert counts == asking
        ask(Engine(policy, hall, [HOW], iteration=2), VIDEOS[::-1], "Where does the red circle go?")
        assert counts == asking
    with compilations() as counts:
        ask(Engine(policy, hall, [HOW], iteration=3), VIDEOS, "the red circle " * 12)
        assert counts == {"read": 1, "next_token_logprobs": 1}  # the next bucket


def some_pairs(policy: Policy, count: int, seed: int) -> PairSet:
    rng = np.random.default_rng(seed)
    rows = [
        {
            "id": f"pair {i}",
            "video": "abc"[i % 3],
            "question": "What?",
            "chosen_tokens": rng.integers(3, 300, rng.integers(2, 9)).tolist(),
            "rejected_tokens": rng.integers(3, 300, rng.integers(2, 9)).tolist(),
        }
        for i in range(count)
    ]
    return PairSet.of(rows, policy)


class Videos:
    """What training needs of a prepared split."""

    ids = ("a", "b", "c")

    def __getitem__(self, i: int):
        return VIDEOS[i]


def train(policy: Policy, layout: IterationLayout, pairs: PairSet) -> tuple[Policy, list[dict[str, float]]]:
    """The reference and the updates of an iteration; the policy behind it, and what was measured."""
    score_pairs(
        policy, Videos(), pairs, epoch_order(len(pairs), 0, layout.index, 0), DPO, layout, after_part=lambda: None
    )
    scores = {
        row["id"]: (row["chosen"], row["rejected"]) for part in layout.parts("reference") for row in read_jsonl(part)
    }
    reference = np.array([scores[pair["id"]] for pair in pairs.pairs], np.float32)
    measured: list[dict[str, float]] = []
    params = optimize(
        policy,
        Videos(),
        pairs,
        reference,
        Config(dpo=DPO),
        layout,
        starts_at_reference=True,
        stop=StopSignal(),
        after_update=measured.append,
        say=lambda _: None,
    )
    return dataclasses.replace(policy, params=params), measured


@pytest.mark.parametrize(
    ("sizes", "devices"),
    [(MeshConfig(), 1), (MeshConfig(data=2, fsdp=2, tensor=2), 8)],
    ids=["one device", "data=2 fsdp=2 tensor=2"],
)
def test_updates_and_iterations_share_their_programs(tmp_path, sizes: MeshConfig, devices: int):
    """Fourteen pairs give two updates, eighteen give three: other policy, other schedule, same step."""
    first_policy = tiny_policy(sizes, devices)
    run = RunLayout(tmp_path)
    with compilations() as counts:
        second_policy, first = train(first_policy, run.iteration(1), some_pairs(first_policy, 14, seed=1))
        assert (counts["pair_logprobs"], counts["dpo_step"]) == (1, 1)
        third_policy, second = train(second_policy, run.iteration(2), some_pairs(first_policy, 18, seed=2))
        assert (counts["pair_logprobs"], counts["dpo_step"]) == (1, 1)
    assert [one["pairs"] for one in first + second] == [8, 6, 8, 8, 2]
    for measured in (first, second):
        assert measured[0]["loss"] == pytest.approx(np.log(2), abs=1e-6)
        assert all(one["update_applied"] == 1 for one in measured)
    heads = [np.asarray(policy.params["llama"]["head"]) for policy in (first_policy, second_policy, third_policy)]
    assert not np.array_equal(heads[0], heads[1]) and not np.array_equal(heads[1], heads[2])


def test_supervised_steps_share_their_program():
    """Towers included, on a mesh; what the batches hold differs."""
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    params = jax.device_put(random_params(TINY), parameter_shardings(mesh, logical_axes(TINY), abstract_params(TINY)))
    optimizer = adamw(1e-3, b1=0.9, b2=0.98, eps=1e-8, weight_decay=0.0, clip_norm=1.0)
    state = create_state(params, optimizer)
    with compilations() as counts:
        for seed in range(3):
            segments = [[Segment.of_response(pair.turn, pair.chosen)] for pair in random_pairs(4, seed)]
            rows, weights = pack_segments(segments, PREFIX_LENGTH, 24, 16)
            rows = PackedRows(*rows)
            batch = jax.device_put(
                SftBatch(random_pixels(4, seed=seed), rows, weights, rows, weights), batch_sharding(mesh)
            )
            state, metrics = sft_step(state, batch, PREFIX_IDS, config=TINY, optimizer=optimizer, text_weight=0.5)
            assert metrics["update_applied"] and np.isfinite(metrics["loss/text"])
        assert counts == {"sft_step": 1}

"""At one batch shape a record's tokens are bitwise its own: other batch mates, another slot, padded batches."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import numpy as np
import pytest
from tiny_policy import noise_video, tiny_policy

from isrdpo_jax.data.records import Video
from isrdpo_jax.schema import CollectConfig, Config, DescribeConfig, JudgeConfig, SamplingConfig
from isrdpo_jax.stages.collect import Batch, collect_batch
from isrdpo_jax.stages.engine import (
    Decoding,
    Policy,
    complete,
    encode_frames,
    letter_logprobs,
    open_prefixes,
)

SLOTS = 4
VIDEOS = [noise_video(name) for name in "abcdef"]


@pytest.fixture(scope="module")
def policy() -> Policy:
    return tiny_policy()


def ask(policy: Policy, videos: Sequence[Video], **changes) -> dict[tuple[str, int], tuple]:
    """Everything that is computed about each question, by question id and sample."""
    how = {"seed": 0, "iteration": 1, "purpose": "respond"} | changes
    features = encode_frames(policy, [video.frames for video in videos])
    prefixes = open_prefixes(policy, features)
    turns = [[question.text for question in video.questions for _ in range(2)] for video in videos]
    ids = [[question.id for question in video.questions for _ in range(2)] for video in videos]
    samples = [[sample for _ in video.questions for sample in range(2)] for video in videos]
    said = complete(policy, prefixes, turns, ids, samples, Decoding(12, 1.0, 0.95), **how)
    letters = letter_logprobs(policy, prefixes, turns)
    features, keys = jax.device_get((features, prefixes.k))
    return {
        (ids[i][j], samples[i][j]): (
            said[i][j].tokens,
            letters[i, j].tobytes(),
            features[i].tobytes(),
            keys[:, i].tobytes(),
        )
        for i in range(len(videos))
        for j in range(len(turns[i]))
    }


@pytest.fixture(scope="module")
def alone(policy):
    return ask(policy, VIDEOS[:SLOTS])


@pytest.mark.parametrize(
    "videos",
    [
        [VIDEOS[i] for i in (3, 2, 1, 0)],
        [VIDEOS[i] for i in (4, 0, 5, 3)],
        [VIDEOS[i] for i in (1, 1, 1, 1)],
    ],
    ids=["another slot", "other batch mates", "padding"],
)
def test_a_record_is_bitwise_the_same(policy, alone, videos):
    other = ask(policy, videos)
    shared = alone.keys() & other.keys()
    assert len(shared) >= 4
    for key in shared:
        assert other[key] == alone[key], key


def test_a_question_keeps_its_tokens_in_another_place_behind_its_video(policy, alone):
    turned = [Video(v.id, v.frames, v.questions[::-1], None, ()) for v in VIDEOS[:SLOTS]]
    assert ask(policy, turned) == alone


@pytest.mark.parametrize("change", [{"seed": 1}, {"iteration": 2}, {"purpose": "evaluate"}])
def test_another_seed_iteration_or_purpose_gives_other_tokens(policy, alone, change: dict):
    other = ask(policy, VIDEOS[:SLOTS], **change)
    assert sum(other[key][0] != alone[key][0] for key in alone) >= 15  # of 16
    assert all(other[key][1:] == alone[key][1:] for key in alone)


def test_two_samples_of_a_question_differ(alone):
    assert all(
        alone[question.id, 0][0] != alone[question.id, 1][0] for video in VIDEOS[:SLOTS] for question in video.questions
    )


def collect(policy: Policy, videos: Sequence[Video]) -> Batch:
    config = Config(
        collect=CollectConfig(batch_videos=SLOTS),
        sampling=SamplingConfig(max_new_tokens=12, keep_unfinished=True),
        describe=DescribeConfig(max_new_tokens=12),
        judge=JudgeConfig(mode="letters"),
    )
    return collect_batch(policy, videos, config, iteration=2, questions=2, previous={"a": "A red circle."})


def test_a_short_batch_writes_the_rows_of_a_full_one(policy):
    """Responses, descriptions and judgements of the last videos, which share their batch with padding."""
    full, short = collect(policy, VIDEOS[:SLOTS]), collect(policy, VIDEOS[:2])
    assert len(full.responses) == 8 and len(short.responses) == 4
    assert short.responses == full.responses[:4]
    assert short.descriptions == full.descriptions[:2]
    assert short.judgements == full.judgements[:4]
    assert {row["reason"] for row in short.judgements} == {"ok"}
    assert [row["previous"] for row in short.descriptions] == ["A red circle.", None]


def test_places_without_a_question_write_nothing(policy):
    batch = collect(policy, [noise_video("a"), noise_video("g", questions=1)])
    for rows in (batch.responses, batch.judgements):
        assert [row["id"] for row in rows] == ["a/0", "a/1", "g/0"]
    assert [row["video"] for row in batch.descriptions] == ["a", "g"]
    assert np.isfinite([row["margin"] for row in batch.judgements]).all()

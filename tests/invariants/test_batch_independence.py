"""In one hall a record is bitwise told the same: other company, another place or lane, a resumed run."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from tiny_policy import noise_video, tiny_policy

from isrdpo_jax.data.records import Video
from isrdpo_jax.schema import CollectConfig, Config, DescribeConfig, SamplingConfig
from isrdpo_jax.stages.collect import Rows, batch_ranges, collect, collect_engine
from isrdpo_jax.stages.policy import Policy

VIDEOS = [noise_video(name, questions=1 + i % 3) for i, name in enumerate("abcdefghi")]


@pytest.fixture(scope="module")
def policy() -> Policy:
    return tiny_policy()


def told(
    policy: Policy, videos: Sequence[Video], batches: dict[int, range] | None = None, iteration: int = 2, **config
) -> dict[str, dict[str, dict]]:
    """All rows of a collect, by kind and id."""
    settings = Config(
        collect=CollectConfig(batch_videos=4, lanes=2),
        sampling=SamplingConfig(max_new_tokens=12, keep_unfinished=True),
        describe=DescribeConfig(max_new_tokens=12, temperature=1.0),
        **config,
    )
    engine = collect_engine(policy, settings, iteration)
    batches = batches or dict(enumerate(batch_ranges(len(videos), 4)))
    made = dict(collect(engine, videos, batches, settings, previous={"a": "A red circle.", "f": "the " * 30}))
    assert made.keys() == batches.keys()
    assert engine.tally.prefills == sum(map(len, batches.values()))
    rows = Rows(*([row for number in sorted(made) for row in getattr(made[number], kind)] for kind in vars(Rows())))
    return {
        "responses": {row["id"]: row for row in rows.responses},
        "descriptions": {row["video"]: row for row in rows.descriptions},
        "judgements": {row["id"]: row for row in rows.judgements},
    }


@pytest.fixture(scope="module")
def all_together(policy):
    return told(policy, VIDEOS)


@pytest.mark.parametrize(
    "videos", [VIDEOS[::-1], VIDEOS[3:7], VIDEOS[:1], [VIDEOS[5], noise_video("x"), VIDEOS[0]]],
    ids=["turned", "fewer", "alone", "other company"],
)  # fmt: skip
def test_a_record_is_told_the_same(policy, all_together, videos):
    other = told(policy, videos)
    for kind, rows in other.items():
        shared = rows.keys() & all_together[kind].keys()
        assert len(shared) >= (1 if len(videos) < 4 else 4)
        for key in shared:
            assert rows[key] == all_together[kind][key], (kind, key)


def test_a_resumed_collect_tells_the_rest_the_same(policy, all_together):
    rest = told(policy, VIDEOS, {1: range(4, 8)})
    assert rest["descriptions"].keys() == set("efgh")
    for kind, rows in rest.items():
        assert all(all_together[kind][key] == row for key, row in rows.items())


def test_rows_are_whole(all_together):
    questions = {question.id for video in VIDEOS for question in video.questions}
    assert all_together["responses"].keys() == all_together["judgements"].keys() == questions
    assert all_together["descriptions"].keys() == {video.id for video in VIDEOS}
    assert {row["reason"] for row in all_together["judgements"].values()} == {"ok"}
    assert all_together["descriptions"]["a"]["previous"] == "A red circle."
    assert np.isfinite([row["margin"] for row in all_together["judgements"].values()]).all()


def test_two_samples_differ_and_so_do_iterations_and_seeds(policy, all_together):
    for row in all_together["responses"].values():
        assert row["responses"][0]["tokens"] != row["responses"][1]["tokens"]
    for other in (told(policy, VIDEOS[:4], iteration=3), told(policy, VIDEOS[:4], run={"seed": 1})):
        same = [row == all_together["responses"][key] for key, row in other["responses"].items()]
        assert sum(same) <= 1

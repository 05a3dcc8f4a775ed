"""Which batches are done does not depend on how many processes made them."""

from __future__ import annotations

from pathlib import Path

import pytest

from isrdpo_jax.errors import CheckpointError
from isrdpo_jax.runs.atomic import write_jsonl
from isrdpo_jax.runs.layout import IterationLayout
from isrdpo_jax.stages import parts

BATCHES = [["a", "b"], ["c", "d"], ["e"]]


@pytest.fixture
def layout(tmp_path: Path) -> IterationLayout:
    """Batch 0 by two processes, batch 1 by the second of them alone, batch 2 by a single one."""
    one = IterationLayout(tmp_path / "iter_01", 1)
    for process, batch, videos in ((0, 0, "a"), (1, 0, "b"), (1, 1, "d"), (0, 2, "e")):
        rows = [{"video": video, "n": n} for video in videos for n in (1, 0)]
        write_jsonl(one.part("judgements", process, batch), rows)
    return one


def test_a_batch_is_done_when_all_its_records_are_there(layout: IterationLayout):
    assert parts.finished(layout, "judgements", "video", BATCHES) == [True, False, True]


def test_only_what_is_left_of_unfinished_batches_goes(layout: IterationLayout):
    parts.discard_unfinished(layout, ["judgements", "responses"], [True, False, True])
    assert [part.name for part in layout.parts("judgements")] == [
        "part-00000-00000.jsonl",
        "part-00000-00002.jsonl",
        "part-00001-00000.jsonl",
    ]


def test_rows_come_in_the_order_of_their_videos(layout: IterationLayout):
    read = parts.read_parts(layout, "judgements")
    assert [(row["video"], row["n"]) for row in read] == [(video, n) for video in "abde" for n in (1, 0)]


def test_a_disk_that_lags_is_waited_for_and_another_disk_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    clock = [0.0]
    monkeypatch.setattr(parts, "monotonic", lambda: clock[0])
    monkeypatch.setattr(parts, "sleep", lambda seconds: clock.__setitem__(0, clock[0] + seconds))
    parts.wait_for_all(lambda: [True, clock[0] > 60], tmp_path)
    assert clock[0] == 61
    with pytest.raises(CheckpointError, match="1 of 2 batches are not to be seen here"):
        parts.wait_for_all(lambda: [True, False], tmp_path)

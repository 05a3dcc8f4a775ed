from __future__ import annotations

import logging
import struct
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event

from isrdpo_jax.runs.atomic import read_jsonl
from isrdpo_jax.runs.metrics import MetricsWriter


def events(folder: Path) -> list[Event]:
    """All events of a folder, oldest file first."""
    found = []
    for path in sorted(folder.iterdir(), key=lambda path: path.stat().st_mtime_ns):
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack("Q", data[:8])
            found.append(Event.FromString(data[12 : 12 + length]))
            data = data[16 + length :]
    return found


def test_rows_are_plain_json_numbers_whatever_they_were(tmp_path: Path):
    values = {
        "pairs": 8, "a": np.int32(3), "loss": np.float32(0.5), "b": jnp.bfloat16(1.5), "c": jnp.asarray(2),
        "bad": jnp.nan, "worse": np.array(np.inf, np.float32),
    }  # fmt: skip
    with MetricsWriter(tmp_path / "metrics.jsonl") as metrics:
        metrics.write(1, values)
    (row,) = read_jsonl(tmp_path / "metrics.jsonl")
    assert row == {"step": 1, "pairs": 8, "a": 3, "loss": 0.5, "b": 1.5, "c": 2, "bad": None, "worse": None}
    assert [type(row[name]) for name in ("pairs", "a", "c")] == [int, int, int]
    assert list(row) == ["step", *values]


def test_resuming_drops_what_is_done_again(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    with MetricsWriter(path) as metrics:
        for step in (1, 2, 3):
            metrics.write(step, {"loss": step})
    with open(path, "a") as file:
        file.write('{"step": 4, "lo')
    with MetricsWriter(path, resumed_step=2) as metrics:
        metrics.write(3, {"loss": 30})
    assert [row["loss"] for row in read_jsonl(path)] == [1, 2, 30]
    with MetricsWriter(path):
        assert read_jsonl(path) == []


def test_tensorboard_gets_the_same_and_forgets_what_is_done_again(tmp_path: Path):
    for start in (0, 1):
        with MetricsWriter(tmp_path / "metrics.jsonl", resumed_step=start, tensorboard=tmp_path / "tb") as metrics:
            metrics.write(start + 1, {"rewards/margins": 0.25 + start})
    version, session, point, _, resumed, again = events(tmp_path / "tb")
    assert version.file_version == "brain.Event:2"
    assert (session.step, resumed.step) == (1, 2) and resumed.session_log.status == resumed.session_log.START
    assert [
        (event.step, value.tag, value.simple_value) for event in (point, again) for value in event.summary.value
    ] == [
        (1, "rewards/margins", 0.25),
        (2, "rewards/margins", 1.25),
    ]


def test_tensorboard_can_never_stop_the_run(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    (tmp_path / "tb").write_text("a file where the folder should be")
    with caplog.at_level(logging.WARNING), MetricsWriter(tmp_path / "m.jsonl", tensorboard=tmp_path / "tb") as metrics:
        metrics.write(1, {"loss": 1.0})
        metrics.write(2, {"loss": 1.0})
    assert len(read_jsonl(tmp_path / "m.jsonl")) == 2
    (record,) = caplog.records
    assert "TensorBoard is switched off" in record.getMessage() and "FileExistsError" in record.getMessage()


def test_tensorboard_that_fails_later_is_switched_off_once(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.WARNING), MetricsWriter(tmp_path / "m.jsonl", tensorboard=tmp_path / "tb") as metrics:
        metrics._others["TensorBoard"]._writer.close()  # writing to a closed file is a ValueError
        for step in (1, 2):
            metrics.write(step, {"loss": 1.0})
    assert len(read_jsonl(tmp_path / "m.jsonl")) == 2 and len(caplog.records) == 1

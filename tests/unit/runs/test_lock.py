from __future__ import annotations

import json
import os
import socket
import time
from pathlib import Path

import pytest

from isrdpo_jax.errors import CheckpointError, RunLockedError
from isrdpo_jax.runs.lock import Holder, RunLock, lock_holder


def test_the_second_of_two_is_refused_and_told_by_whom(tmp_path: Path):
    path = tmp_path / "run" / "lock"
    with RunLock(path):
        content = json.loads(path.read_text())
        assert (content["host"], content["pid"]) == (socket.gethostname(), os.getpid())
        path.write_text(json.dumps(content | {"started": time.time() - 7380}))
        refusal = f"process {os.getpid()} on {socket.gethostname()}, for 2 h 3 min"
        with pytest.raises(RunLockedError, match=refusal), RunLock(path):
            pass
        assert lock_holder(path) == Holder(**json.loads(path.read_text()))
    assert lock_holder(path) is None
    with RunLock(path):
        pass


def test_a_lock_that_names_nobody_yet_still_refuses(tmp_path: Path):
    path = tmp_path / "lock"
    with RunLock(path):
        path.write_text("")
        with pytest.raises(RunLockedError, match="another process"), RunLock(path):
            pass


def test_what_a_dead_holder_left_keeps_nobody_out(tmp_path: Path):
    path = tmp_path / "lock"
    path.write_text(json.dumps({"host": "gone", "pid": 1, "started": 0.0, "command": "isrdpo run " + "x" * 500}))
    assert lock_holder(path) is None
    with RunLock(path):
        assert lock_holder(path).pid == os.getpid()
    assert lock_holder(tmp_path / "no-lock") is None


def test_an_error_inside_lets_go(tmp_path: Path):
    with pytest.raises(KeyError), RunLock(tmp_path / "lock"):
        raise KeyError
    with RunLock(tmp_path / "lock"):
        pass


def test_a_lock_that_cannot_be_opened_is_named(tmp_path: Path):
    (tmp_path / "lock").mkdir()
    with (
        pytest.raises(CheckpointError, match=r"lock: the run's lock cannot be opened \(Is a directory\)"),
        RunLock(tmp_path / "lock"),
    ):
        pass


def test_a_clock_that_went_back_gives_no_negative_age():
    assert "for 0 s" in Holder("h", 1, time.time() + 3600, "c").describe()

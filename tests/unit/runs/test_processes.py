"""A process that has joined no others decides alone, and half a set of flags is refused before JAX starts."""

from __future__ import annotations

import pytest

from isrdpo_jax.errors import ConfigError, RunLockedError
from isrdpo_jax.runs import processes
from isrdpo_jax.runs.lock import RunLock, lock_holder


@pytest.mark.parametrize(
    "flags",
    [
        ("2", None, None),
        ("2", 0, None),
        ("2", None, "localhost:1"),
        (None, 0, "localhost:1"),
        ("auto", 0, None),
        ("two", 0, "localhost:1"),
    ],
)
def test_half_a_set_of_flags_is_refused(flags: tuple):
    with pytest.raises(ConfigError, match="--processes N --process I --coordinator HOST:PORT"):
        processes.join(*flags, heartbeat_s=10)
    assert not processes.several()


def test_a_process_past_the_last_one_is_refused():
    with pytest.raises(ConfigError, match="--process 2: of 2 processes, the last one is 1"):
        processes.join("2", 2, "localhost:1", heartbeat_s=10)


def test_without_flags_a_process_is_alone():
    with processes.joined(None, None, None, 10):
        assert not processes.several() and processes.is_first()
    assert processes.gather({"a": 1}) == [{"a": 1}]
    assert processes.first_says(lambda: 3) == processes.most(3) == 3
    assert (processes.any_says(True), processes.any_says(False)) == (True, False)
    processes.meet()


def test_what_process_0_enters_it_leaves(tmp_path):
    path = tmp_path / "lock"
    with processes.in_first(RunLock(path)):
        assert lock_holder(path) is not None
        with pytest.raises(RunLockedError), processes.in_first(RunLock(path)):
            pass
    assert lock_holder(path) is None

"""Features on disk: what is put comes back when the cache is opened again, and nothing else does."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from isrdpo_jax.data.feature_cache import FeatureCache
from isrdpo_jax.errors import CheckpointError
from isrdpo_jax.runs.atomic import write_json

SHAPE = (5, 3)
SIZE = 5 * 3 * 4


def features(seed: int, dtype=np.float32) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=SHAPE).astype(dtype)


def cache(folder: Path, limit: int = 10**6, dtype=np.float32, **options) -> FeatureCache:
    identity = options.pop("identity", {"tower": "t", "data": "d"})
    return FeatureCache(folder, identity, SHAPE, dtype, limit=limit, **options)


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_features_come_back_bit_by_bit_when_the_cache_is_opened_again(tmp_path: Path, dtype):
    for some in ("ab", "c"):
        with cache(tmp_path, dtype=dtype) as kept:
            for name in some:
                assert kept.get(name) is None and name not in kept
                kept.put(name, features(ord(name), dtype))
    with cache(tmp_path, dtype=dtype) as kept:
        assert len(kept) == 3
        for name in "cab":
            np.testing.assert_array_equal(kept.get(name), features(ord(name), dtype))
        assert kept.get("d") is None


def test_several_write_files_of_their_own_and_read_all(tmp_path: Path):
    """Two processes of a run, or two runs: also where both have seen the same video, and in any order."""
    with cache(tmp_path) as one:
        one.put("a", features(0))
        with cache(tmp_path) as two:
            two.put("b", features(1))
            one.put("b", features(1))
            two.put("a", features(0))
            two.put("c", features(2))
    with cache(tmp_path) as kept:
        for seed, name in enumerate("abc"):
            np.testing.assert_array_equal(kept.get(name), features(seed))
    assert not list(kept.folder.glob("*.lock"))


def test_processes_of_a_run_leave_room_for_each_other(tmp_path: Path):
    with cache(tmp_path, limit=4 * SIZE, writers=2) as one, cache(tmp_path, limit=4 * SIZE, writers=2) as two:
        for name in "abc":
            one.put(name, features(0))
            two.put(name.upper(), features(1))
    with cache(tmp_path) as kept:
        assert sorted(kept._where) == ["A", "B", "a", "b"]


def test_what_is_there_is_not_written_again_and_what_has_no_room_is_not_kept(tmp_path: Path):
    with cache(tmp_path, limit=2 * SIZE) as kept:
        for name in ("a", "a", "b", "c"):
            kept.put(name, features(ord(name)))
    with cache(tmp_path, limit=2 * SIZE) as kept:
        assert ("a" in kept, "b" in kept, "c" in kept) == (True, True, False)
        kept.put("a", features(9))
        kept.put("c", features(9))
    with cache(tmp_path, limit=3 * SIZE) as kept:
        assert len(kept) == 2
        kept.put("c", features(ord("c")))
    with cache(tmp_path) as kept:
        np.testing.assert_array_equal(kept.get("a"), features(ord("a")))
        np.testing.assert_array_equal(kept.get("c"), features(ord("c")))


KILLED = """
import os, signal, sys
import numpy as np
from isrdpo_jax.data.feature_cache import FeatureCache
kept = FeatureCache({folder!r}, {{"tower": "t", "data": "d"}}, {shape}, np.float32, limit=10**6)
kept.put("a", np.zeros({shape}))
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_process_was_writing_is_gone_and_what_a_live_one_writes_stays(tmp_path: Path):
    code = KILLED.format(folder=tmp_path, shape=SHAPE).replace("PosixPath", "__import__('pathlib').Path")
    assert subprocess.run([sys.executable, "-c", code]).returncode == -signal.SIGKILL
    with cache(tmp_path) as alive:
        assert not list(alive.folder.glob("part-*"))
        alive.put("a", features(1))
        with cache(tmp_path) as other:
            assert "a" not in other
    with cache(tmp_path) as kept:
        np.testing.assert_array_equal(kept.get("a"), features(1))


def test_another_tower_has_another_folder_and_a_folder_that_was_moved_is_refused(tmp_path: Path):
    with cache(tmp_path) as kept:
        kept.put("a", features(0))
    with cache(tmp_path, identity={"tower": "another", "data": "d"}) as other:
        assert "a" not in other
    write_json(kept.folder / "identity.json", {"tower": "another", "data": "d"})
    with pytest.raises(CheckpointError, match="belong to another tower"):
        cache(tmp_path)


@pytest.mark.parametrize("damage", ["cut", "empty", "missing", "fewer"])
def test_a_file_that_is_not_what_its_index_says_is_refused(tmp_path: Path, damage: str):
    with cache(tmp_path) as kept:
        for name in "abc":
            kept.put(name, features(ord(name)))
    (path,) = kept.folder.glob("*.array_record")
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    elif damage == "fewer":
        write_json(Path(f"{path}.json"), {"ids": ["a", "b", "c", "d"]})
    else:
        path.write_bytes(content[: len(content) // 2] if damage == "cut" else b"")
    with cache(tmp_path) as kept, pytest.raises(CheckpointError, match="not the features that its index says"):
        kept.get("a")

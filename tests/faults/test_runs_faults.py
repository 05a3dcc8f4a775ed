"""A run's files under real faults: kill -9, flipped bytes, two writers, signals, full disks."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from isrdpo_jax.errors import CheckpointError, RunLockedError
from isrdpo_jax.runs import atomic, checkpoint
from isrdpo_jax.runs.layout import manifest_path
from isrdpo_jax.runs.lock import RunLock, lock_holder
from isrdpo_jax.runs.metrics import MetricsWriter


def start(code: str, *args: object) -> subprocess.Popen[str]:
    """Runs `code` in a process of its own; it has told us by a line that it is at work when this returns."""
    command = [sys.executable, "-c", code, *map(str, args)]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert child.stdout.readline() == "ready\n", child.stderr.read()
    return child


def kill(child: subprocess.Popen[str]) -> None:
    child.kill()
    child.communicate()
    assert child.returncode == -signal.SIGKILL


# Writers that are killed

REWRITE = """
import itertools, pathlib, sys
from isrdpo_jax.runs.atomic import write_json
path = pathlib.Path(sys.argv[1])
write_json(path, [0] * 50_000)
print("ready", flush=True)
for value in itertools.count(1):
    write_json(path, [value] * 50_000)
"""


def test_a_file_is_old_or_new_whenever_its_writer_is_killed(tmp_path: Path):
    path = tmp_path / "pairs.json"
    for seed in range(6):
        child = start(REWRITE, path)
        time.sleep(random.Random(seed).uniform(0, 0.15))
        kill(child)
        values = atomic.read_json(path)
        assert len(values) == 50_000 and len(set(values)) == 1
        atomic.sweep_temporaries(tmp_path)
        assert os.listdir(tmp_path) == ["pairs.json"]


BEFORE_RENAME = """
import os, pathlib, signal, sys
from isrdpo_jax.runs.atomic import write_text
path = pathlib.Path(sys.argv[1])
write_text(path, "old")
os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
print("ready", flush=True)
write_text(path, "new")
"""


def test_killed_between_write_and_rename_the_old_file_stays(tmp_path: Path):
    child = start(BEFORE_RENAME, tmp_path / "file")
    child.communicate()
    assert child.returncode == -signal.SIGKILL
    assert (tmp_path / "file").read_text() == "old"
    assert atomic.sweep_temporaries(tmp_path) == 1 and os.listdir(tmp_path) == ["file"]


APPEND = """
import itertools, pathlib, sys
from isrdpo_jax.runs.metrics import MetricsWriter
metrics = MetricsWriter(pathlib.Path(sys.argv[1]), resumed_step=int(sys.argv[2]))
print("ready", flush=True)
for step in itertools.count(int(sys.argv[2]) + 1):
    metrics.write(step, {"text_length": 10**2000})
"""


def test_metrics_have_each_step_once_however_often_they_are_killed(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    resumed = 0
    for seed in range(4):
        child = start(APPEND, path, resumed)
        time.sleep(random.Random(seed).uniform(0.02, 0.1))
        kill(child)
        with open(path, "ab") as file:
            file.write(b'{"step": 99, "torn')
        resumed = max(0, path.read_bytes().count(b"\n") - 2)  # the checkpoint lags behind
    with MetricsWriter(path, resumed_step=resumed):
        steps = [row["step"] for row in atomic.read_jsonl(path)]
    assert resumed > 0 and steps == list(range(1, resumed + 1))


# Checkpoints

SAVE = """
import os, pathlib, signal, sys, numpy, jax
from isrdpo_jax.runs import checkpoint
folder, at = pathlib.Path(sys.argv[1]), sys.argv[2]
checkpoint.save_tree(folder / "step_00000001", {"w": numpy.ones(9)}, iteration=1)
if at == "before the manifest":
    checkpoint.write_manifest = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
big = {f"w{i}": jax.numpy.asarray(numpy.random.rand(2000, 2000)) for i in range(12)}
print("ready", flush=True)
checkpoint.save_tree(folder / "step_00000002", big, iteration=1)
"""


@pytest.mark.parametrize("at", ["while the arrays are written", "before the manifest"])
def test_killed_in_a_save_the_older_checkpoint_is_the_newest(tmp_path: Path, at: str):
    child = start(SAVE, tmp_path, at)
    if at == "while the arrays are written":
        while not list(tmp_path.glob("step_00000002.orbax-checkpoint-tmp/*")):
            assert child.poll() is None
        child.kill()
    child.communicate()
    assert child.returncode == -signal.SIGKILL
    assert (tmp_path / "step_00000002").exists() == (at == "before the manifest")
    assert checkpoint.newest_verified(tmp_path) == checkpoint.TrainStep(1, tmp_path / "step_00000001", ())

    assert checkpoint.sweep(tmp_path) == (at != "before the manifest")
    checkpoint.save_tree(tmp_path / "step_00000002", {"w": np.zeros(9)}, iteration=1)
    assert checkpoint.newest_verified(tmp_path).step == 2


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (flip, "was changed"),
        (lambda path: os.truncate(path, path.stat().st_size - 1), "bytes instead of"),
        (Path.unlink, "is missing"),
    ],
    ids=["flipped", "truncated", "deleted"],
)
@pytest.mark.parametrize("which", ["largest", "smallest"])
def test_damage_to_a_checkpoint_is_found_before_use_and_the_older_one_taken(
    tmp_path: Path, damage, words: str, which: str
):
    for step in (1, 2):
        tree = {"w": np.random.default_rng(step).random((100, 100))}
        checkpoint.save_tree(tmp_path / f"step_{step:08d}", tree, iteration=1)
    newest = tmp_path / "step_00000002"
    files = sorted((path for path in newest.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    victim = files[-1 if which == "largest" else 0]
    damage(victim)
    with pytest.raises(CheckpointError) as caught:
        checkpoint.restore_tree(newest)
    assert f"{victim} " in str(caught.value) and words in str(caught.value)
    found = checkpoint.newest_verified(tmp_path)
    assert found.step == 1 and str(victim) in found.refused[0]
    np.testing.assert_array_equal(checkpoint.restore_tree(found.path)["w"], np.random.default_rng(1).random((100, 100)))


# Two writers

HOLD = """
import pathlib, sys, time
from isrdpo_jax.runs.lock import RunLock
with RunLock(pathlib.Path(sys.argv[1])):
    print("ready", flush=True)
    time.sleep(60)
"""


def test_a_second_writer_is_refused_until_the_first_is_dead(tmp_path: Path):
    path = tmp_path / "lock"
    child = start(HOLD, path)
    with pytest.raises(RunLockedError, match=rf"process {child.pid} on \S+, for \d+ s"), RunLock(path):
        pass
    assert lock_holder(path).pid == child.pid
    kill(child)
    assert f'"pid": {child.pid}' in path.read_text(), "the dead holder's name is still there"
    assert lock_holder(path) is None
    with RunLock(path):
        assert lock_holder(path).pid == os.getpid()


# Signals

WORK = """
import pathlib, sys, time
from isrdpo_jax.errors import StoppedError
from isrdpo_jax.runs.atomic import write_text
from isrdpo_jax.runs.preemption import StopSignal
try:
    with StopSignal() as stop:
        for unit in range(100):
            if unit == 0:
                print("ready", flush=True)
            end = time.monotonic() + float(sys.argv[2])
            while time.monotonic() < end:
                time.sleep(0.01)
            write_text(pathlib.Path(sys.argv[1]), f"unit {unit}")
            stop.check()
except StoppedError as error:
    print(error)
    sys.exit(error.exit_code)
"""


def test_sigterm_lets_the_unit_at_hand_end(tmp_path: Path):
    child = start(WORK, tmp_path / "work", 0.5)
    child.terminate()
    out, err = child.communicate(timeout=10)
    assert child.returncode == 75
    assert (tmp_path / "work").read_text() == "unit 0"
    assert "Stopped by SIGTERM" in out and "SIGTERM: finishing" in err


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_the_run_at_once(tmp_path: Path, second: signal.Signals):
    child = start(WORK, tmp_path / "work", 60)
    child.terminate()
    assert "finishing" in child.stderr.readline() + child.stderr.readline()
    child.send_signal(second)
    out, _ = child.communicate(timeout=10)
    assert child.returncode == 75
    assert out == "" and not (tmp_path / "work").exists()


# Full disks

LIMITED = """
import pathlib, resource, sys
from isrdpo_jax.errors import CheckpointError
from isrdpo_jax.runs import atomic
folder = pathlib.Path(sys.argv[1])
print("ready", flush=True)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
for write in (lambda: atomic.write_text(folder / "file", "x" * 2000),
              lambda: atomic.append_jsonl(folder / "rows", {"x": "x" * 2000})):
    try:
        write()
    except CheckpointError as error:
        print(error, file=sys.stderr)
"""


def test_a_file_size_limit_leaves_nothing_half_written(tmp_path: Path):
    (tmp_path / "file").write_text("old")
    (tmp_path / "rows").write_text('{"x": 1}\n')
    _, err = start(LIMITED, tmp_path).communicate()
    assert f"{tmp_path}/file: no space left for it: 2,000 bytes needed" in err
    assert f"{tmp_path}/rows: no space left for it: 2,010 bytes needed" in err
    assert sorted(os.listdir(tmp_path)) == ["file", "rows"]
    assert (tmp_path / "file").read_text() == "old" and atomic.read_jsonl(tmp_path / "rows") == [{"x": 1}]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a small file system cannot be mounted here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_stops_a_file_and_room_lets_it_go_on(small_disk: Path):
    atomic.write_bytes(small_disk / "file", b"old" * 100_000)
    with pytest.raises(CheckpointError, match=r"disk/file: no space left for it: 900,000 bytes needed, [\d,]+ free"):
        atomic.write_bytes(small_disk / "file", b"new" * 300_000)
    assert (small_disk / "file").read_bytes() == b"old" * 100_000 and os.listdir(small_disk) == ["file"]
    (small_disk / "file").unlink()
    atomic.write_bytes(small_disk / "file", b"new" * 300_000)
    assert (small_disk / "file").read_bytes() == b"new" * 300_000


def test_a_full_disk_cuts_no_metrics(small_disk: Path):
    path = small_disk / "metrics.jsonl"
    with pytest.raises(CheckpointError, match=r"metrics.jsonl: no space left for it"), MetricsWriter(path) as metrics:
        for step in range(1, 100):
            metrics.write(step, {"long": 10**4000, "longer": 10**4200, "longest": 10**4299})
    steps = [row["step"] for row in atomic.read_jsonl(path)]
    assert steps == list(range(1, len(steps) + 1)) and 50 < len(steps) < 99


@pytest.mark.parametrize("foreseen", [True, False], ids=["foreseen", "while writing"])
def test_a_full_disk_stops_a_save_and_room_lets_it_go_on(
    small_disk: Path, foreseen: bool, monkeypatch: pytest.MonkeyPatch
):
    checkpoint.save_tree(small_disk / "step_00000001", {"w": np.ones(9)}, iteration=1)
    (small_disk / "ballast").write_bytes(bytes(600_000))
    big = {"w": np.random.default_rng(0).random(80_000)}
    with (
        monkeypatch.context() as patch,
        pytest.raises(CheckpointError, match=r"step_00000002: no space left for it: 640,000 bytes"),
    ):
        if not foreseen:
            patch.setattr(checkpoint, "free_bytes", lambda path: 10**9)
        pending = checkpoint.start_save(small_disk / "step_00000002", big, iteration=1)
        assert not foreseen
        pending.wait()
    assert checkpoint.newest_verified(small_disk).step == 1
    assert sorted(path.name for path in small_disk.iterdir()) == [
        "ballast",
        "step_00000001",
        "step_00000001.manifest.json",
    ]

    (small_disk / "ballast").unlink()
    checkpoint.save_tree(small_disk / "step_00000002", big, iteration=1)
    np.testing.assert_array_equal(checkpoint.restore_tree(small_disk / "step_00000002")["w"], big["w"])


# tensorboardX cannot close a file that it cannot flush.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_full_disk_under_tensorboard_stops_nothing(
    small_disk: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    (small_disk / "ballast").write_bytes(bytes(1024 * 1024 - 4096))
    with MetricsWriter(tmp_path / "metrics.jsonl", tensorboard=small_disk / "events") as metrics:
        for step in range(1, 200):
            metrics.write(step, {"loss": 0.5, "rewards/margins": 0.1})
    assert len(atomic.read_jsonl(tmp_path / "metrics.jsonl")) == 199
    assert [record.getMessage()[:30] for record in caplog.records] == ["TensorBoard is switched off, m"]


def test_a_run_folder_that_vanished_or_became_read_only_stops_the_writer(tmp_path: Path):
    folder = tmp_path / "run"
    folder.mkdir()
    shutil.rmtree(folder)
    folder.write_text("something else took its place")
    with pytest.raises(CheckpointError, match="run/iter_01/pairs.jsonl: the file cannot be written"):
        atomic.write_jsonl(folder / "iter_01" / "pairs.jsonl", [])
    with pytest.raises(CheckpointError, match="checkpoint: the checkpoint cannot be written"):
        checkpoint.start_save(folder / "iter_01" / "checkpoint", {"w": np.ones(1)}, iteration=1)
    assert not manifest_path(folder / "iter_01" / "checkpoint").exists()

"""Imports and exports that are killed, or that fill the disk: nothing half-made is ever seen."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import pytest
from tiny import TINY, random_params
from tiny_policy import with_words

from isrdpo_jax.errors import CheckpointError
from isrdpo_jax.runs import streamed
from isrdpo_jax.runs.checkpoint import restore_tree
from isrdpo_jax.weights import export_hf
from isrdpo_jax.weights.export_hf import export_folder
from isrdpo_jax.weights.import_hf import import_folder
from isrdpo_jax.weights.policy_folder import find_policy, packaged_tokenizer, write_policy

LAYERS = TINY.vision.model_copy(update={"num_layers": 60})  # many small files, so that there is something to interrupt
MODEL = with_words(TINY.model_copy(update={"vision": LAYERS}))


@pytest.fixture(scope="module")
def policy(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("policies") / "policy"
    write_policy(folder, MODEL, packaged_tokenizer("shapes"), random_params(MODEL), {})
    return folder


@pytest.fixture(scope="module")
def hf(policy) -> Path:
    out = policy.with_name("hf")
    export_folder(find_policy(str(policy)), out, layout="original", dtype="float32", say=lambda text: None)
    return out


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "isrdpo_jax", *map(str, arguments)]


def test_a_killed_import_shows_nothing_and_the_next_is_whole(hf, tmp_path):
    out, arguments = tmp_path / "out", command("import", hf, tmp_path / "out")
    killed = 0
    for files in (1, 200, 500):
        shutil.rmtree(tmp_path / "out.partial", ignore_errors=True)
        process = subprocess.Popen(arguments, stderr=subprocess.DEVNULL)
        while process.poll() is None and sum(len(names) for _, _, names in os.walk(tmp_path)) < files:
            time.sleep(0.002)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            killed += process.wait() == -signal.SIGKILL
            assert not out.exists()
    assert killed == 3
    assert (tmp_path / "out.partial").exists(), "the kills came while it wrote"
    subprocess.run(arguments, check=True, capture_output=True)
    assert os.listdir(tmp_path) == ["out"]
    found = restore_tree(out / "checkpoint")
    assert jax.tree.all(jax.tree.map(np.array_equal, found, random_params(MODEL)))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 400 kB; the checkpoint takes more."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(folder)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a small file system cannot be mounted here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_foreseen(policy, hf, small_disk):
    for what, source in (("import", hf), ("export", policy)):
        ran = subprocess.run(command(what, source, small_disk / "out"), capture_output=True, text=True)
        assert ran.returncode == 2, ran.stderr
        assert "no space left for it" in ran.stderr and "Traceback" not in ran.stderr
        assert os.listdir(small_disk) == []


def test_a_disk_that_fills_up_leaves_nothing(policy, hf, small_disk, monkeypatch):
    for module in (streamed, export_hf):
        monkeypatch.setattr(module, "free_bytes", lambda path: 10**9)
    with pytest.raises(CheckpointError, match="no space left for it"):
        import_folder(str(hf), small_disk / "out", say=print, check_tokenizer=lambda folder, model: None)
    assert os.listdir(small_disk) == []
    with pytest.raises(CheckpointError, match="no space left for it"):
        export_folder(find_policy(str(policy)), small_disk / "out", layout="original", dtype="float32", say=print)
    assert os.listdir(small_disk) == []

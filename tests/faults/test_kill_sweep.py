"""A sweep under kill -9 at random moments, and made by two machines at once: it ends in the same table."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest
import yaml
from tiny_run import Lab

from isrdpo_jax.runs.atomic import read_json
from isrdpo_jax.runs.layout import RunLayout
from isrdpo_jax.runs.manifest import load_manifest

KILLS = 10
BETAS, ITERATIONS = [0.03, 0.1, 0.3, 1.0], 3
SMALL = {
    "data": {"train_videos": 6, "eval_videos": 4},
    "collect": {"batch_videos": 4},
    "evaluation": {"max_new_tokens": 8, "bootstrap_samples": 20},
    "dpo": {"batch_size": 4, "learning_rate": 1e-3},
}


@pytest.fixture(scope="module")
def sweep(lab: Lab) -> Path:
    settings = yaml.safe_load(lab.config.read_text())
    for name, section in SMALL.items():
        settings[name] = settings.get(name, {}) | section
    (lab.root / "small.yaml").write_text(yaml.safe_dump(settings))
    path = lab.root / "beta.yaml"
    fields = {"name": "beta", "config": "small.yaml", "set": {"run.iterations": ITERATIONS}}
    path.write_text(yaml.safe_dump(fields | {"grid": {"dpo.beta": BETAS}}))
    return path


def table(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def work_done(folder: Path) -> int:
    """How much lies on disk: it grows with every unit of work."""
    return sum(name.endswith((".json", ".jsonl")) for _, _, names in os.walk(folder) for name in names)


def start(lab: Lab, sweep: Path, runs: Path, *overrides: str, said: str = "") -> subprocess.Popen[str]:
    """The sweep in a process of its own; much is compiled here and little computed."""
    environment = lab.environment() | {"XLA_FLAGS": "--xla_backend_optimization_level=0"}
    with open(said or f"{runs}.said", "w") as out:
        return lab.start("sweep", sweep, f"run.dir={runs}", *overrides, stdout=out, stderr=out, env=environment)


def finish(lab: Lab, sweep: Path, runs: Path) -> Path:
    """Runs the sweep to its end; its folder."""
    assert start(lab, sweep, runs).wait(timeout=900) == 0, Path(f"{runs}.said").read_text()
    return runs / "beta"


@pytest.fixture(scope="module")
def whole(lab: Lab, sweep: Path) -> Path:
    """The folder of a sweep that nothing disturbed."""
    return finish(lab, sweep, lab.root / "whole")


@pytest.mark.slow
def test_killed_ten_times_it_ends_in_the_same_table(lab: Lab, sweep: Path, whole: Path):
    points = read_json(whole / "sweep.json")["points"]
    assert [row["state"] for row in points] == ["done"] * len(BETAS)
    assert [row["made"]["collect"] for row in points] == [3, 2, 2, 2]
    assert [row["shared"].get("collect", 0) for row in points] == [0, 1, 1, 1]
    assert [row["shared"].get("reference", 0) for row in points] == [0, 1, 1, 1]
    for row in points[1:]:
        shared = load_manifest(RunLayout(whole / row["point"]).iteration(1).manifest("collect"))
        assert shared.facts["shared_from"] == "beta-0.03/iter_01"

    chance, total, runs = random.Random(0), work_done(whole), lab.root / "killed"
    for to_come in range(KILLS, 0, -1):
        child, before = start(lab, sweep, runs), work_done(runs)
        target = before + chance.randint(1, max(1, round(1.5 * (total - before) / (to_come + 1))))
        while work_done(runs) < target and child.poll() is None:
            time.sleep(0.02)
        child.kill()
        assert child.wait() == -signal.SIGKILL, Path(f"{runs}.said").read_text()
    assert table(finish(lab, sweep, runs)) == table(whole)


@pytest.mark.slow
def test_two_machines_take_different_points_and_share_what_is_the_same(lab: Lab, sweep: Path, whole: Path):
    runs = lab.root / "together"
    machines = [start(lab, sweep, runs, "run.iterations=1", said=f"{runs}_{i}.said") for i in (1, 2)]
    assert [machine.wait(timeout=900) for machine in machines] == [0, 0]
    points = read_json(runs / "beta/sweep.json")["points"]
    assert [row["state"] for row in points] == ["done"] * len(BETAS)
    for stage in ("collect", "reference"):
        assert sum(row["made"].get(stage, 0) for row in points) == 1
        assert sum(row["shared"].get(stage, 0) for row in points) == len(BETAS) - 1
    alone = read_json(whole / "sweep.json")["points"]
    assert [row["iterations"] for row in points] == [row["iterations"][:2] for row in alone]
    said = [Path(f"{runs}_{i}.said").read_text() for i in (1, 2)]
    trained = [text.count("optimize: updates") for text in said]
    assert sum(trained) == len(BETAS) and min(trained) >= 1, "every point was trained once, and each machine took some"

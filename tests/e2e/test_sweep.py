"""A sweep: its points one after the other, one of which fails."""

from __future__ import annotations

import json
import re
from io import StringIO
from pathlib import Path

import pytest
import yaml
from rich.console import Console
from tiny_run import Lab

from isrdpo_jax.errors import ConfigError
from isrdpo_jax.runs.atomic import read_json
from isrdpo_jax.sweep import read_sweep, run_sweep


def write_sweep(lab: Lab, **fields: object) -> Path:
    content = {"name": "ties", "config": "run.yaml", "set": {"run.iterations": 1}} | fields
    path = lab.root / f"{content['name']}.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.fixture
def sweep(lab: Lab, finished) -> Path:
    del finished  # has prepared the data
    return write_sweep(lab, grid={"judge.tie_margin": [0.0, 1000.0]})


def test_a_failing_point_is_marked_and_only_what_is_missing_is_done_again(lab: Lab, sweep: Path, one_device, isrdpo):
    said = StringIO()
    done, failed = run_sweep(sweep, Console(file=said, width=200))
    assert (done["judge.tie_margin"], failed["judge.tie_margin"]) == (0.0, 1000.0)
    assert done["state"] == "done" and done["run"] == str(lab.layout("ties_tie_margin-0").root)
    assert done["accuracy"] == read_json(Path(done["run"]) / "iter_01/evaluation/summary.json")["accuracy"]["value"]
    assert re.match(r"failed: 0 of 40 questions gave a pair \(.*tie \d+\)", failed["state"])
    assert "accuracy" not in failed
    assert "0 of 40 questions gave a pair" in said.getvalue()
    assert read_json(lab.root / "runs/ties.sweep.json") == [done, failed]

    def written() -> dict[Path, int]:
        parts = lab.root.glob("runs/ties_*/iter_*/**/*.json*")
        return {path: path.stat().st_mtime_ns for path in parts}

    before = written()
    again = isrdpo("sweep", sweep)
    assert again.code == 0 and "done" in again.out and "failed" in again.out
    assert written() == before, "the finished point is finished, and of the other one the collect"
    assert read_json(lab.root / "runs/ties.sweep.json") == [done, failed]


def test_all_points_are_checked_before_the_first_runs(lab: Lab):
    wrong = write_sweep(lab, name="wrong", grid={"dpo.beta": [0.1, -1.0]})
    with pytest.raises(ConfigError, match=r"dpo\.beta"):
        run_sweep(wrong, Console(quiet=True))
    assert not list(lab.root.glob("runs/wrong*"))
    twice = write_sweep(lab, name="twice", grid={"dpo.beta": [0.1, 0.1]})
    with pytest.raises(ConfigError, match="the same values"):
        read_sweep(twice)
    empty = write_sweep(lab, name="empty", grid={})
    with pytest.raises(ConfigError, match="not a sweep"):
        read_sweep(empty)


def test_a_grid_is_every_combination(lab: Lab):
    path = write_sweep(lab, name="two", grid={"dpo.beta": [0.1, 0.3], "judge.context": ["none", "fresh"]})
    points = [(point, loaded.config.run.name) for point, loaded in read_sweep(path)]
    assert json.dumps([point for point, _ in points]) == json.dumps(
        [{"dpo.beta": beta, "judge.context": context} for beta in (0.1, 0.3) for context in ("none", "fresh")]
    )
    assert points[1][1] == "two_beta-0.1_context-fresh"

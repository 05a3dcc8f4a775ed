"""Sweeps: points that fail, points that others run, and stages that several points have in common."""

from __future__ import annotations

import csv
import json
import re
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

import pytest
import yaml
from rich.console import Console
from tiny import assert_trees_equal
from tiny_run import Lab, on_one_device, records, weights

from isrdpo_jax.errors import ConfigError
from isrdpo_jax.report.status import read_status, status_table
from isrdpo_jax.runs.atomic import read_json
from isrdpo_jax.runs.lock import RunLock
from isrdpo_jax.sweep import running
from isrdpo_jax.sweep.points import Sweep, read_sweep
from isrdpo_jax.sweep.results import read_rows
from isrdpo_jax.sweep.running import run_sweep


def write_sweep(lab: Lab, **fields: object) -> Path:
    content = {"name": "ties", "config": "run.yaml", "set": {"run.iterations": 1}} | fields
    path = lab.root / f"{content['name']}.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.fixture(scope="module")
def sweep(lab: Lab, finished) -> Path:
    del finished  # has prepared the data
    return write_sweep(lab, grid={"dpo.beta": [0.1, 0.3], "judge.tie_margin": [0.0, 1000.0]})


@dataclass(frozen=True)
class Made:
    """A sweep that was run: its grid, what was returned, what the user was told."""

    grid: Sweep
    rows: list[dict]
    said: str


@pytest.fixture(scope="module")
def made(sweep: Path) -> Made:
    said, grid = StringIO(), read_sweep(sweep)
    with pytest.MonkeyPatch.context() as patch:
        on_one_device(patch)
        return Made(grid, run_sweep(grid, Console(file=said, width=200)), said.getvalue())


def states(rows: list[dict]) -> dict[str, str]:
    return {row["point"]: row["state"] for row in rows}


def test_a_failing_point_is_marked_and_the_others_are_done(made: Made):
    assert states(made.rows) == {
        "beta-0.1_tie_margin-0": "done",
        "beta-0.1_tie_margin-1000": "failed",
        "beta-0.3_tie_margin-0": "done",
        "beta-0.3_tie_margin-1000": "failed",
    }
    done, failed, *_ = made.rows
    assert re.match(r"0 of 40 questions gave a pair \(.*tie \d+\)", failed["error"])
    assert failed["error"] in made.said and done["error"] is None
    check_written(made.grid, made.rows)


def test_what_is_the_same_is_made_once_and_counted(made: Made):
    first, _, point, _ = made.rows
    assert first["made"] == {"evaluate": 2, "collect": 1, "pairs": 1, "reference": 1, "optimize": 1}
    assert first["shared"] == {}
    assert point["shared"] == {"evaluate": 1, "collect": 1, "reference": 1}
    assert point["made"] == {"evaluate": 1, "pairs": 1, "optimize": 1}
    assert [row["made"].get("collect", 0) for row in made.rows] == [1, 1, 0, 0], "a margin has a part in the verdicts"
    layout, origin = made.grid.points[2].layout, "beta-0.1_tie_margin-0/iter_01"
    status, said = read_status(layout.root), StringIO()
    assert status["rows"][1]["shared"] == {"collect": origin, "reference": origin}
    Console(file=said, width=200).print(status_table(status))
    assert "shared from other runs: evaluate 1, collect 1, reference 1" in said.getvalue()


def test_a_run_that_shares_is_the_run_that_makes_all_itself(lab: Lab, made: Made, one_device):
    alone, point = lab.run("alone", "dpo.beta=0.3", "run.iterations=1").layout, made.grid.points[2].layout
    mine, theirs = records(alone), records(point)
    assert [name for name in mine if "manifest" not in name and mine[name] != theirs.get(name)] == []
    assert_trees_equal(weights(alone.iteration(1)), weights(point.iteration(1)))


def test_the_same_command_again_does_only_what_is_missing(sweep: Path, made: Made, one_device, isrdpo):
    before = written(made.grid)
    again = isrdpo("sweep", sweep)
    assert again.code == 2 and "2 of 4 points are not done: beta-0.1_tie_margin-1000" in again.err.replace("\n", " ")
    assert "done 1/1" in again.out and "failed 1/1" in again.out
    assert written(made.grid) == before, "finished points are finished, and of the others the collect"
    assert read_rows(made.grid) == made.rows


def check_written(grid: Sweep, rows: list[dict]) -> None:
    """JSON, CSV and the page hold the same figures."""
    assert read_json(grid.root / "sweep.json") == {"sweep": "ties", "points": rows}
    table = list(csv.DictReader(StringIO((grid.root / "sweep.csv").read_text())))
    assert [(row["point"], row["iteration"]) for row in table] == [
        (row["point"], str(t)) for row in rows for t in (0, 1) if t == 0 or row["state"] == "done"
    ]
    for point in (0, 2):
        summary = read_json(grid.points[point].layout.iteration(1).evaluation / "summary.json")
        (line,) = (r for r in table if r["point"] == rows[point]["point"] and r["iteration"] == "1")
        assert (line["dpo.beta"], line["judge.tie_margin"]) == (("0.1", "0"), ("0.3", "0"))[point // 2]
        for part, suffix in (("value", ""), ("low", "_low"), ("high", "_high"), ("count", "_count")):
            assert float(line[f"accuracy{suffix}"]) == summary["accuracy"][part]
    page = (grid.root / "index.html").read_text()
    assert page.count('<svg role="img"') >= 5 and rows[1]["error"] in page and "beta-0.3_tie_margin-0" in page


def written(grid: Sweep) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in grid.root.glob("*/iter_*/**/*.json*")}


def played(monkeypatch: pytest.MonkeyPatch, play) -> None:
    """Puts `play(config)` where runs are made."""
    monkeypatch.setattr(running, "run", lambda config, **options: play(config, **options))


def test_any_error_of_a_point_spares_the_others_and_a_request_to_stop_does_not(lab: Lab, monkeypatch):
    grid = read_sweep(write_sweep(lab, name="errors", grid={"dpo.beta": [0.1, 0.2, 0.3]}))
    seen = []

    def play(config, **options):
        seen.append(config.dpo.beta)
        if config.dpo.beta == 0.1:
            raise MemoryError("RESOURCE_EXHAUSTED: out of memory")
        if config.dpo.beta == 0.3:
            raise KeyboardInterrupt

    played(monkeypatch, play)
    with pytest.raises(KeyboardInterrupt):
        run_sweep(grid, Console(quiet=True))
    assert seen == [0.1, 0.2, 0.3]
    failed, *others = read_json(grid.root / "sweep.json")["points"]
    assert (failed["state"], failed["error"]) == ("failed", "MemoryError: RESOURCE_EXHAUSTED: out of memory")
    assert "in play" in read_json(grid.points[0].layout.root / "failure.json")["traceback"]
    assert [row["state"] for row in others] == ["waiting", "waiting"]


def test_a_damaged_point_spares_the_others(lab: Lab, monkeypatch):
    grid = read_sweep(write_sweep(lab, name="damaged", grid={"dpo.beta": [0.1, 0.2]}))
    damaged, other = (point.layout for point in grid.points)
    damaged.root.mkdir(parents=True)
    damaged.config.write_text("run: [")
    seen = []
    played(monkeypatch, lambda config, **options: seen.append(config.dpo.beta))
    rows = run_sweep(grid, Console(quiet=True))
    assert states(rows) == {"beta-0.1": "damaged", "beta-0.2": "waiting"} and seen == [0.2]
    assert str(damaged.config) in rows[0]["error"] and damaged.config.read_text() == "run: ["
    assert not other.root.exists()


def test_a_point_that_another_machine_runs_is_passed_over(lab: Lab, finished, one_device):
    del finished
    grid = read_sweep(write_sweep(lab, name="two", grid={"dpo.beta": [0.1, 0.3]}), ["run.iterations=1"])
    theirs, mine = (point.layout for point in grid.points)
    mine.root.mkdir(parents=True)
    with RunLock(theirs.lock), RunLock(mine.lock):
        said = StringIO()
        rows = run_sweep(grid, Console(file=said, width=200))
    assert said.getvalue().count("this run is being written by process") == 2
    assert states(rows) == {"beta-0.1": "waiting", "beta-0.3": "waiting"}, "no run is there yet, and nothing failed"
    assert not (theirs.root / "failure.json").exists()


def test_all_points_are_checked_before_the_first_runs(lab: Lab):
    wrong = write_sweep(lab, name="wrong", grid={"dpo.beta": [0.1, -1.0]})
    with pytest.raises(ConfigError, match=r"dpo\.beta"):
        read_sweep(wrong)
    twice = write_sweep(lab, name="twice", grid={"dpo.beta": [0.1, 0.1]})
    with pytest.raises(ConfigError, match="the same values"):
        read_sweep(twice)
    empty = write_sweep(lab, name="empty", grid={})
    with pytest.raises(ConfigError, match="not a sweep"):
        read_sweep(empty)
    named = write_sweep(lab, name="named", grid={"run.name": ["a", "b"]})
    with pytest.raises(ConfigError, match="run.name is the sweep's to give"):
        read_sweep(named)


def test_a_grid_is_every_combination(lab: Lab):
    path = write_sweep(lab, name="all", grid={"dpo.beta": [0.1, 0.3], "judge.context": ["none", "fresh"]})
    points = read_sweep(path).points
    assert json.dumps([point.values for point in points]) == json.dumps(
        [{"dpo.beta": beta, "judge.context": context} for beta in (0.1, 0.3) for context in ("none", "fresh")]
    )
    assert points[1].name == "beta-0.1_context-fresh"
    assert points[1].layout.root == lab.root / "runs/all/beta-0.1_context-fresh"


def test_a_grid_of_config_files_another_config_and_overrides(lab: Lab, tmp_path: Path):
    (lab.root / "blind.yaml").write_text("run: {name: blind}\njudge: {video: blank}\n")
    (lab.root / "look.yaml").write_text("run: {name: look}\n")
    path = write_sweep(lab, name="files", grid={"include": ["blind.yaml", "look.yaml"], "run.seed": [0, 1]})
    other = tmp_path / "other.yaml"
    other.write_text(f"include: {lab.config}\ndpo: {{beta: 0.7}}\n")
    points = read_sweep(path, ["dpo.b2=0.5", "run.iterations=3"], other).points
    assert [point.name for point in points] == ["blind_seed-0", "blind_seed-1", "look_seed-0", "look_seed-1"]
    assert [point.config.judge.video for point in points] == ["blank", "blank", "true", "true"]
    assert {(point.config.dpo.beta, point.config.dpo.b2) for point in points} == {(0.7, 0.5)}
    assert points[0].config.run.iterations == 3, "the command line wins over what the file sets"

"""Measured times are medians between the parts that a run wrote."""

from __future__ import annotations

import os
from types import SimpleNamespace

import pytest
from synthetic_plan import CONFIG, SUBJECT, outcome

from isrdpo_jax.errors import DataError
from isrdpo_jax.plan.measured import measured, planned_units
from isrdpo_jax.plan.planner import summarise
from isrdpo_jax.plan.table import measured_table
from isrdpo_jax.runs import metrics
from isrdpo_jax.runs.atomic import write_json, write_jsonl
from isrdpo_jax.runs.layout import RunLayout


@pytest.fixture
def run(tmp_path):
    layout = RunLayout(tmp_path / "run")
    write_json(layout.run_json, {})
    return layout


def test_medians_between_parts(run):
    """A first batch that compiled, and a night's pause, do not count."""
    for t, times in ((1, [0, 100, 110, 120]), (2, [50_000, 50_012])):
        for number, time in enumerate(times):
            for process in (0, 1):
                part = run.iteration(t).part("judgements", process, number)
                write_jsonl(part, [])
                os.utime(part, (time + process, time + process))
    assert measured(run.root) == {"collect": {"seconds": 11.0, "of": 4}}


def test_updates_are_timed_by_their_tensorboard_events(run, monkeypatch):
    clock = iter([0.0, 5.0, 30.0, 36.0])  # the file's begin, and three updates
    monkeypatch.setattr(metrics, "time", SimpleNamespace(time=lambda: next(clock)))
    one = run.iteration(1)
    with metrics.MetricsWriter(one.metrics, tensorboard=one.tensorboard) as writer:
        for step in (1, 2, 3):
            writer.write(step, {"loss": 0.5})
    assert measured(run.root) == {"optimize": {"seconds": 15.5, "of": 2}}


def test_a_run_without_a_pace_is_refused(run, tmp_path):
    with pytest.raises(DataError, match="nothing is measured"):
        measured(run.root)
    with pytest.raises(DataError, match="there is no run"):
        measured(tmp_path / "nowhere")


def test_planned_units_stand_beside_them():
    plan = summarise(SUBJECT, outcome(dpo_step={"executed_flops": 10 * 197e12}))
    units = planned_units(plan, CONFIG)
    collect = plan["iteration"]["stages"]["collect"] * 32 / 100  # a batch has 32 of the 100 videos
    assert units == pytest.approx({"collect": collect, "reference": 16.0, "optimize": 18.0})
    table = measured_table({"optimize": {"seconds": 36.0, "of": 3, "planned_seconds": units["optimize"]}})
    assert [list(column.cells) for column in table.columns][-1] == ["50 %"]


def test_a_program_without_a_time_leaves_its_stage_without_one():
    plan = summarise(SUBJECT, outcome(dpo_step={"fits_compiler": False}))
    assert planned_units(plan, CONFIG)["optimize"] is None
    assert planned_units(plan, CONFIG)["collect"] is not None

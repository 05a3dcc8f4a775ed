"""The report's first table, for the terminal: start and last iteration of each run, with intervals and counts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from isrdpo_jax.report.load import load_run
from isrdpo_jax.report.measures import MEASURES, Measure, Point, change, interval


def headline_table(runs: Sequence[Path]) -> Table:
    """One row per measure and run; the count is what the last value is an average over."""
    table = Table("measure", "run", "start", "last", "iterations", "count", title="with 95 % bootstrap intervals")
    loaded = [load_run(path) for path in runs]
    for measure in MEASURES:
        for run in loaded:
            found = change(run, measure)
            if found.first and found.last:
                span = f"{found.first.iteration} -> {found.last.iteration}"
                count = str(found.last.estimate.count)
                table.add_row(
                    measure.title, run.name, _cell(found.first, measure), _cell(found.last, measure), span, count
                )
    return table


def _cell(point: Point, measure: Measure) -> str:
    return f"{measure.write(point.estimate.value)} {interval(point.estimate, measure)}".strip()

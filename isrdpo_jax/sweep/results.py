"""What a sweep has come to, read from its runs: one row per point, written as JSON, CSV and a page.

Rows are derived from what is on disk alone, so that every machine that takes part, and every repetition, writes the
same ones.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from time import sleep
from typing import Any

from rich.table import Table

from isrdpo_jax.config import load_config, semantic_hash
from isrdpo_jax.errors import CheckpointError, ConfigError, RunLockedError
from isrdpo_jax.report.measures import BY_KEY, DASH
from isrdpo_jax.report.status import read_status
from isrdpo_jax.runs.atomic import read_json, write_json, write_text
from isrdpo_jax.runs.layout import RunLayout
from isrdpo_jax.runs.lock import RunLock
from isrdpo_jax.runs.manifest import load_verified
from isrdpo_jax.sweep.page import sweep_page
from isrdpo_jax.sweep.points import Point, Sweep, label

Row = dict[str, Any]
_PAUSE_S = 0.1
SHOWN = ("accuracy", "false_share", "words", "judge_accuracy", "length_ratio")


def failure_path(point: Point) -> Path:
    """Says why the point's last attempt failed; gone when it is tried again."""
    return point.layout.root / "failure.json"


def read_rows(sweep: Sweep) -> list[Row]:
    """One row per point: {"point", "values", "state", "error", "iteration", "of", "made", "shared", "iterations"}.

    state: `done`, `failed`, `running`, `stopped`, `waiting` or `damaged`. made, shared: stages, such as {"collect": 3}.
    iterations: [{"iteration", measure: {"value", "count", "low", "high"}}], of those that are evaluated.
    """
    return [_row(point) for point in sweep.points]


def write_results(sweep: Sweep) -> None:
    """Writes `sweep.json`, `sweep.csv` and `index.html` into the sweep's folder."""
    with _writing(sweep):
        rows = read_rows(sweep)
        write_json(sweep.root / "sweep.json", {"sweep": sweep.name, "points": rows})
        write_text(sweep.root / "sweep.csv", _csv(sweep, rows))
        write_text(sweep.root / "index.html", sweep_page(sweep, rows, sweep_cells(sweep, rows, intervals=True)))


def sweep_cells(sweep: Sweep, rows: Sequence[Row], *, intervals: bool) -> tuple[list[str], list[list[str]]]:
    """The table for people, as (titles, cells of each point): the figures are those of the last iteration."""
    shown = [key for key in SHOWN if any(key in one for row in rows for one in row["iterations"])]
    keys = [key.rpartition(".")[2] for key in sweep.keys]
    titles = [*keys, "state", "collects made, shared", *(BY_KEY[key].title for key in shown)]
    return titles, [[*_head(sweep, row), *(_figure(row, key, intervals) for key in shown)] for row in rows]


def sweep_table(sweep: Sweep, rows: Sequence[Row]) -> Table:
    """The table for the terminal."""
    titles, cells = sweep_cells(sweep, rows, intervals=False)
    table = Table(title=f"{sweep.name}: the last iteration of every point")
    for number, title in enumerate(titles):
        table.add_column(title, no_wrap=number <= len(sweep.keys), min_width=4)
    for row in cells:
        table.add_row(*row)
    return table


@contextmanager
def _writing(sweep: Sweep) -> Iterator[None]:
    """Holds the sweep's table: who reads the runs later writes later, so that old rows never replace new ones."""
    with ExitStack() as stack:
        while True:
            try:
                stack.enter_context(RunLock(sweep.root / "claims" / "table.lock"))
                break
            except RunLockedError:
                sleep(_PAUSE_S)
        yield


def _row(point: Point) -> Row:
    row: Row = {"point": point.name, "values": point.values, "state": "waiting", "error": None}
    row |= {"iteration": 0, "of": point.config.run.iterations, "made": {}, "shared": {}, "iterations": []}
    if point.layout.config.exists():
        try:
            if semantic_hash(load_config(point.layout.config).config) != semantic_hash(point.config):
                error = "the run of this name has another configuration: go back to it, or give the sweep another name"
                return row | {"state": "failed", "error": error}
            status = read_status(point.layout.root)
            state = "done" if status["state"] == "finished" else status["state"]
            counts = {name: status["stages"][name] for name in ("made", "shared")}
            row |= {"state": state, "iteration": status["iteration"], **counts}
            row["iterations"] = list(_figures(point.layout))
        except (CheckpointError, ConfigError) as error:  # for the point's own run to stop at; the others' figures stand
            row |= {"state": "damaged", "error": str(error)}
    if row["state"] in ("waiting", "stopped") and failure_path(point).exists():
        row |= {"state": "failed", "error": read_json(failure_path(point))["error"]}
    return row


def _figures(layout: RunLayout) -> Iterator[Row]:
    for one in layout.iterations():
        if one.manifest("evaluate").exists():
            load_verified(one.manifest("evaluate"))
            yield {"iteration": one.index, **read_json(one.evaluation / "summary.json")}


def _csv(sweep: Sweep, rows: Sequence[Row]) -> str:
    """One line per point and evaluated iteration; a point without any has one that says its state."""
    names = list(dict.fromkeys(key for row in rows for one in row["iterations"] for key in one if key != "iteration"))
    measured = [f"{name}{suffix}" for name in names for suffix in ("", "_low", "_high", "_count")]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["point", *sweep.keys, "state", "iteration", *measured])
    for row in rows:
        for one in row["iterations"] or [{"iteration": None}]:
            figures = (one.get(name, {}).get(part) for name in names for part in ("value", "low", "high", "count"))
            values = (label(row["values"][key]) for key in sweep.keys)
            writer.writerow([row["point"], *values, row["state"], one["iteration"], *figures])
    return out.getvalue()


def _head(sweep: Sweep, row: Row) -> list[str]:
    values = [label(row["values"][key]) for key in sweep.keys]
    collects = (str(row[name].get("collect", 0)) for name in ("made", "shared"))
    return [*values, f"{row['state']} {row['iteration']}/{row['of']}", ", ".join(collects)]


def _figure(row: Row, key: str, interval: bool) -> str:
    """The value of the last iteration that has it."""
    found = [one[key] for one in row["iterations"] if one.get(key, {}).get("value") is not None]
    if not found:
        return DASH
    write, last = BY_KEY[key].write, found[-1]
    bounds = f" [{write(last['low'])}, {write(last['high'])}]" if interval and last["low"] is not None else ""
    return f"{write(last['value'])}{bounds}"

"""A grid of runs: `isrdpo sweep configs/sweeps/beta.yaml`.

A sweep file names a config and, by dotted key, the values to try:

    name: beta
    config: ../shapes.yaml
    set: {run.iterations: 3}
    grid: {dpo.beta: [0.05, 0.1, 0.3]}
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError
from rich.console import Console
from rich.table import Table

from isrdpo_jax.config import LoadedConfig, load_config
from isrdpo_jax.errors import ConfigError, IsrdpoError, StoppedError
from isrdpo_jax.pipeline import run
from isrdpo_jax.runs.atomic import read_json, write_json
from isrdpo_jax.runs.layout import RunLayout
from isrdpo_jax.schema import Section
from isrdpo_jax.yaml_tree import read_plain

SHOWN = ("accuracy", "false_share", "words", "judge_accuracy", "length_ratio")


class SweepFile(Section):
    """What a sweep file holds."""

    name: str = Field(min_length=1, pattern=r"^[A-Za-z0-9._-]+$")
    config: str
    set: dict[str, Any] = {}
    grid: dict[str, list[Any]] = Field(min_length=1)


def read_sweep(path: Path) -> list[tuple[dict[str, Any], LoadedConfig]]:
    """The points of the grid, each with its values and its checked config.

    Raises:
        ConfigError: the file, or any of its points, cannot be used; all points are checked before the first runs.
    """
    try:
        sweep = SweepFile.model_validate(read_plain(str(path)))
    except ValidationError as error:
        details = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise ConfigError(f"{path}: not a sweep ({details}). It needs name, config and grid.") from error
    points = []
    for values in product(*sweep.grid.values()):
        point = dict(zip(sweep.grid, values, strict=True))
        label = "_".join(f"{key.rpartition('.')[2]}-{_label(value)}" for key, value in point.items())
        settings = {**sweep.set, **point, "run.name": f"{sweep.name}_{label}"}
        overrides = [f"{key}={json.dumps(value)}" for key, value in settings.items()]
        points.append((point, load_config(path.parent / sweep.config, overrides)))
    names = [loaded.config.run.name for _, loaded in points]
    if len(set(names)) < len(names):
        raise ConfigError(f"{path}: two points of the grid have the same values.")
    return points


def run_sweep(path: Path, console: Console) -> list[dict[str, Any]]:
    """Runs every point to its end; a point that fails is marked, and the others go on.

    Returns:
        One row per point: its values, `run`, `state`, and figures of its last iteration; also written beside the runs.
    """
    rows = []
    for point, loaded in read_sweep(path):
        config = loaded.config
        console.rule(config.run.name)
        layout = RunLayout(Path(config.run.dir) / config.run.name)
        row: dict[str, Any] = {**point, "run": str(layout.root), "state": "done"}
        try:
            run(config, console=console)
            row |= dict(_figures(layout, config.run.iterations))
        except StoppedError:
            raise
        except IsrdpoError as error:
            console.print(f"{config.run.name}: {error}", style="red", highlight=False, markup=False)
            row["state"] = f"failed: {error}"
        rows.append(row)
    write_json(Path(config.run.dir) / f"{path.stem}.sweep.json", rows)
    return rows


def sweep_table(rows: Sequence[dict[str, Any]]) -> Table:
    """The rows for people."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    table = Table(*names)
    for row in rows:
        table.add_row(*(_label(row.get(name)) for name in names))
    return table


def _figures(layout: RunLayout, iteration: int) -> Iterator[tuple[str, float | None]]:
    path = layout.iteration(iteration).evaluation / "summary.json"
    summary = read_json(path) if path.exists() else {}
    for name in SHOWN:
        yield name, summary.get(name, {}).get("value")


def _label(value: Any) -> str:
    return "–" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)

"""A sweep file, and the points of its grid: `isrdpo sweep configs/sweeps/beta.yaml`.

A sweep file names a config and, by dotted key, the values to try:

    name: beta
    config: ../shapes.yaml
    set: {run.iterations: 3}
    grid: {dpo.beta: [0.05, 0.1, 0.3]}

Whole config files may be tried as well: `include: [../experiments/isr_dpo.yaml, …]`. Paths of `config` and `include`
are relative to the sweep file.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from isrdpo_jax.config import load_config
from isrdpo_jax.errors import ConfigError
from isrdpo_jax.runs.layout import RunLayout
from isrdpo_jax.schema import Config, Section
from isrdpo_jax.yaml_tree import INCLUDE, read_plain

RESERVED = ("run.name", "run.dir")  # a sweep gives them to its points


class SweepFile(Section):
    """What a sweep file holds."""

    name: str = Field(min_length=1, pattern=r"^[A-Za-z0-9._-]+$")
    config: str
    set: dict[str, Any] = {}
    grid: dict[str, list[Any]] = Field(min_length=1)


@dataclass(frozen=True)
class Point:
    """One run of a sweep.

    Attributes:
        values: the point's place in the grid, by dotted key.
        config: its whole configuration; `run.name` is the point's name, `run.dir` the sweep's folder.
    """

    values: dict[str, Any]
    config: Config

    @property
    def name(self) -> str:
        return self.config.run.name

    @property
    def layout(self) -> RunLayout:
        return RunLayout(Path(self.config.run.dir) / self.name)


@dataclass(frozen=True)
class Sweep:
    """A grid of runs.

    Attributes:
        root: its folder, `runs/NAME`; the points' runs lie in it, and the table.
    """

    name: str
    root: Path
    points: tuple[Point, ...]

    @property
    def keys(self) -> tuple[str, ...]:
        """What is varied, by dotted key."""
        return tuple(self.points[0].values)


def read_sweep(path: Path, overrides: Iterable[str] = (), config: Path | None = None) -> Sweep:
    """The sweep of a file; all its points are checked before the first runs.

    Args:
        overrides: `dotted.key=value`, for every point; they win over `set`.
        config: the config to take instead of the one that the file names.

    Raises:
        ConfigError: the file, or any of its points, cannot be used.
    """
    try:
        sweep = SweepFile.model_validate(read_plain(str(path)))
    except ValidationError as error:
        details = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise ConfigError(f"{path}: not a sweep ({details}). It needs name, config and grid.") from error
    if taken := [key for key in RESERVED if key in sweep.grid or key in sweep.set]:
        raise ConfigError(f"{path}: {taken[0]} is the sweep's to give; its points lie in <run.dir>/{sweep.name}/.")
    overrides = tuple(overrides)
    if lost := sorted({one.partition("=")[0] for one in overrides} & {*sweep.grid, "run.name"}):
        raise ConfigError(f"{lost[0]}: the points of {path} differ in it; change the sweep file.")
    base = config or path.parent / sweep.config
    common = [*(_override(path, key, value) for key, value in sweep.set.items()), *overrides]
    runs = Path(load_config(base, common).config.run.dir)
    points = []
    for combination in product(*sweep.grid.values()):
        values = dict(zip(sweep.grid, combination, strict=True))
        places = {"run.name": _name(values), "run.dir": str(runs / sweep.name)}
        settings = (_override(path, key, value) for key, value in (values | places).items())
        points.append(Point(values, load_config(base, [*common, *settings]).config))
    names = Counter(point.name for point in points)
    if twice := [name for name, count in names.items() if count > 1]:
        raise ConfigError(f"{path}: two points of the grid have the same values ({twice[0]}).")
    return Sweep(sweep.name, runs / sweep.name, tuple(points))


def label(value: Any) -> str:
    """A value of the grid as tables show it; a config file by its name, a section by its values."""
    if isinstance(value, str) and value.endswith(".yaml"):
        return Path(value).stem
    if isinstance(value, dict):
        return ", ".join(f"{key} {label(one)}" for key, one in value.items())
    return f"{value:.10g}" if isinstance(value, float) else value if isinstance(value, str) else json.dumps(value)


def _name(values: Mapping[str, Any]) -> str:
    """The point's folder: `beta-0.1_context-fresh`."""

    def named(key: str, value: Any) -> str:
        whole = key == INCLUDE or isinstance(value, dict)
        return label(value) if whole else f"{key.rpartition('.')[2]}-{label(value)}"

    joined = "_".join(named(key, value) for key, value in values.items())
    return re.sub(r"[^A-Za-z0-9._-]+", "-", joined).strip("-.")


def _override(path: Path, key: str, value: Any) -> str:
    if key == INCLUDE and isinstance(value, str):
        value = os.path.normpath(path.parent / value)
    return f"{key}={json.dumps(value)}"

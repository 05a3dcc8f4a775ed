"""What a sweep says of its points, read from their runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from isrdpo_jax.config import dump_yaml, load_config
from isrdpo_jax.errors import ConfigError
from isrdpo_jax.runs.atomic import write_text
from isrdpo_jax.sweep.points import Point, Sweep, read_sweep
from isrdpo_jax.sweep.results import read_rows

CONFIGS = Path(__file__).parents[2] / "configs"


def test_a_folder_with_a_run_of_another_configuration_tells_nothing_of_the_point(tmp_path: Path):
    places = [f"run.dir={tmp_path}", "run.name=point"]
    point = Point({"dpo.beta": 0.1}, load_config(CONFIGS / "shapes.yaml", places).config)
    other = load_config(CONFIGS / "shapes.yaml", [*places, "dpo.learning_rate=1e-3"]).config
    write_text(point.layout.config, dump_yaml(other))
    (row,) = read_rows(Sweep("sweep", tmp_path, (point,)))
    assert row["state"] == "failed" and "another configuration" in row["error"] and row["iterations"] == []
    write_text(point.layout.config, dump_yaml(point.config))
    (row,) = read_rows(Sweep("sweep", tmp_path, (point,)))
    assert row["state"] == "stopped"


@pytest.mark.parametrize("override", ["dpo.beta=7", "run.name=mine"])
def test_what_the_points_differ_in_cannot_be_overridden(override: str):
    with pytest.raises(ConfigError, match="differ in it"):
        read_sweep(CONFIGS / "sweeps" / "beta.yaml", [override])

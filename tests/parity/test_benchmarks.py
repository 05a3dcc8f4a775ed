"""The benchmarks against PyTorch, on a tiny model: the peers compute what ours computes, and the JSON is whole."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"
KEYS = {"case", "ours", "peer", "ratio", "floor", "unit", "runs"}


@pytest.mark.parametrize(
    "name, arguments, unit",
    [("dpo_step", [], "pairs/s"), ("collect", ["--videos", "2", "--max-tokens", "8"], "videos/s")],
)
def test_of_a_tiny_model(name: str, arguments: list[str], unit: str):
    command = [sys.executable, str(FOLDER / f"{name}.py"), "--size", "smoke", "--runs", "2", "--json", *arguments]
    done = subprocess.run(command, env={**os.environ, "JAX_PLATFORMS": "cpu"}, stdout=subprocess.PIPE, text=True)
    assert done.returncode == 0
    said = json.loads(done.stdout)
    assert said["name"] == name
    assert all(set(row) == KEYS and row["runs"] == 2 for row in said["rows"])
    for row in said["rows"]:
        if row["unit"] == unit:
            assert row["ratio"] == pytest.approx(row["ours"] / row["peer"])
    assert sum(row["unit"] == unit for row in said["rows"]) >= 3

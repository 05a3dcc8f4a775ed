"""How the 7B model lies on three meshes, as a table under review: each parameter's shape, partition, bytes per chip.

After a change that is meant:  python tests/unit/test_sharding_7b.py
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import jax
import pytest
from jax.sharding import AbstractMesh, NamedSharding

from isrdpo_jax.models.video_llava import abstract_params, logical_axes
from isrdpo_jax.schema import ModelConfig
from isrdpo_jax.sharding import AXES, parameter_shardings

GOLDEN = Path(__file__).parents[1] / "goldens" / "sharding_7b.txt"
MODEL = ModelConfig()
MESHES = {"fsdp=16": (1, 16, 1), "fsdp=8 tensor=2": (1, 8, 2), "fsdp=128 tensor=2": (1, 128, 2)}


def placed(sizes: tuple[int, int, int]) -> Iterator[tuple[str, jax.ShapeDtypeStruct, NamedSharding]]:
    """Every parameter with its name and where it lies."""
    shapes = abstract_params(MODEL)
    shardings = parameter_shardings(AbstractMesh(sizes, AXES), logical_axes(MODEL), shapes)
    for (path, array), sharding in zip(
        jax.tree_util.tree_leaves_with_path(shapes), jax.tree.leaves(shardings), strict=True
    ):
        yield jax.tree_util.keystr(path, simple=True, separator="."), array, sharding


def bytes_per_chip(array: jax.ShapeDtypeStruct, sharding: NamedSharding) -> int:
    return math.prod(sharding.shard_shape(array.shape)) * array.dtype.itemsize


def table() -> str:
    """One line per parameter; the partition is the same on every mesh, the bytes per chip are not."""
    meshes = [list(placed(sizes)) for sizes in MESHES.values()]
    rows = [("parameter", "shape", "partition", *MESHES)]
    totals = [0] * len(MESHES)
    for several in zip(*meshes, strict=True):
        name, array, sharding = several[0]
        assert {other.spec for _, _, other in several} == {sharding.spec}
        sizes = [bytes_per_chip(array, other) for _, _, other in several]
        totals = [total + size for total, size in zip(totals, sizes, strict=True)]
        partition = ", ".join("-" if axis is None else str(axis) for axis in sharding.spec)
        rows.append((name, "x".join(map(str, array.shape)), partition, *(f"{size:,}" for size in sizes)))
    rows.append(("all", "", "", *(f"{total:,}" for total in totals)))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    line = "  ".join(f"{{:{'<' if i < 3 else '>'}{width}}}" for i, width in enumerate(widths))
    return "".join(line.format(*row) + "\n" for row in rows)


def test_the_7b_sharding_is_the_reviewed_one():
    assert table() == GOLDEN.read_text(), f"Look at the difference; if it is meant: python {Path(__file__).name}"


@pytest.mark.parametrize("sizes", MESHES.values(), ids=MESHES.keys())
def test_bytes_per_chip_fall_as_one_over_the_chips(sizes: tuple[int, int, int]):
    whole = sum(math.prod(array.shape) * array.dtype.itemsize for _, array, _ in placed(sizes))
    per_chip = sum(bytes_per_chip(array, sharding) for _, array, sharding in placed(sizes))
    assert per_chip * math.prod(sizes) == pytest.approx(whole, rel=0.1)


if __name__ == "__main__":
    GOLDEN.write_text(table())

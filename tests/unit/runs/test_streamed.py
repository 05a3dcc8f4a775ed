"""Checkpoints written array by array are Orbax's, and those of Orbax are read array by array."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from isrdpo_jax.errors import CheckpointError
from isrdpo_jax.runs.checkpoint import restore_tree, save_tree, tree_digest
from isrdpo_jax.runs.layout import manifest_path
from isrdpo_jax.runs.manifest import load_manifest
from isrdpo_jax.runs.streamed import Leaf, open_leaves, save_leaves
from isrdpo_jax.schema import MeshConfig
from isrdpo_jax.sharding import make_mesh

RNG = np.random.default_rng(0)
KERNEL = RNG.normal(size=(3, 8, 4)).astype(ml_dtypes.bfloat16)
TREE = {
    "a": {"bias": np.zeros((3, 4), np.float32), "kernel": KERNEL},
    "norm": RNG.normal(size=8).astype(np.float32),
    "scale": np.float32(2.5).reshape(()),
}


def leaves() -> list[Leaf]:
    """The stacked ones slice by slice, and not in the memory order in which they are stored."""
    kernel = [partial(np.asfortranarray, layer) for layer in KERNEL]
    return [
        Leaf("a.bias", (3, 4), np.dtype(np.float32), [partial(np.zeros, 4, np.float32)] * 3, stacked=True),
        Leaf("a.kernel", (3, 8, 4), KERNEL.dtype, kernel, stacked=True),
        Leaf("norm", (8,), np.dtype(np.float32), [lambda: TREE["norm"]], stacked=False),
        Leaf("scale", (), np.dtype(np.float32), [lambda: TREE["scale"]], stacked=False),
    ]


def assert_same(found, expected=TREE) -> None:
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    assert jax.tree.all(jax.tree.map(lambda a, b: a.dtype == b.dtype, found, expected))


def test_what_is_streamed_is_restored(tmp_path):
    digest = save_leaves(tmp_path / "c", leaves(), facts={"source": "x"})
    assert digest == tree_digest(TREE)
    assert_same(restore_tree(tmp_path / "c"))
    manifest = load_manifest(manifest_path(tmp_path / "c"))
    assert manifest.facts == {"source": "x", "policy": digest}
    on_disk = {path.relative_to(tmp_path).as_posix() for path in (tmp_path / "c").rglob("*") if path.is_file()}
    assert set(manifest.files) == on_disk, "every file is sealed"


def test_orbax_itself_restores_it_without_being_told_what(tmp_path, caplog):
    save_leaves(tmp_path / "c", leaves())
    with ocp.StandardCheckpointer() as checkpointer:
        assert_same(checkpointer.restore(tmp_path / "c"))
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


def test_it_lands_on_a_mesh_in_another_dtype(tmp_path):
    save_leaves(tmp_path / "c", leaves())
    mesh = make_mesh(MeshConfig(fsdp=4, tensor=2))
    split = {"a": {"bias": (), "kernel": (None, "fsdp", "tensor")}, "norm": ("fsdp",), "scale": ()}
    abstract = jax.tree.map(
        lambda a, axes: jax.ShapeDtypeStruct(a.shape, jnp.float32, sharding=NamedSharding(mesh, PartitionSpec(*axes))),
        TREE,
        split,
        is_leaf=lambda x: isinstance(x, np.ndarray),
    )
    found = restore_tree(tmp_path / "c", abstract)
    assert found["a"]["kernel"].sharding.shard_shape((3, 8, 4)) == (3, 2, 2)
    assert_same(found, jax.tree.map(lambda a: a.astype(np.float32), TREE))


def test_arrays_of_both_kinds_are_read_one_by_one(tmp_path):
    save_leaves(tmp_path / "streamed", leaves())
    save_tree(tmp_path / "orbax", TREE, iteration=0)
    for name in ("streamed", "orbax"):
        found = open_leaves(tmp_path / name)
        assert sorted(found) == ["a.bias", "a.kernel", "norm", "scale"]
        np.testing.assert_array_equal(found["a.kernel"][1].read().result(), KERNEL[1])
        np.testing.assert_array_equal(found["scale"].read().result(), TREE["scale"])


def test_a_changed_byte_is_refused(tmp_path):
    save_leaves(tmp_path / "c", leaves())
    chunk = tmp_path / "c" / "a.kernel" / "1.0.0"
    content = bytearray(chunk.read_bytes())
    content[3] ^= 1
    chunk.write_bytes(content)
    for read in (restore_tree, open_leaves):
        with pytest.raises(CheckpointError, match=r"c/a.kernel/1.0.0 was changed"):
            read(tmp_path / "c")


def test_a_checkpoint_whose_reading_fails_does_not_count(tmp_path):
    def fail():
        raise CheckpointError("the source was cut off")

    broken = [*leaves()[:1], Leaf("b", (2,), np.dtype(np.float32), [fail], stacked=False)]
    with pytest.raises(CheckpointError, match="cut off"):
        save_leaves(tmp_path / "c", broken)
    with pytest.raises(CheckpointError, match="missing"):
        open_leaves(tmp_path / "c")

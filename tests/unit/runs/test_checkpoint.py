from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from isrdpo_jax.errors import CheckpointError
from isrdpo_jax.runs import checkpoint
from isrdpo_jax.runs.layout import manifest_path
from isrdpo_jax.runs.manifest import load_manifest


def policy() -> dict:
    key = jax.random.key(0)
    return {
        "llama": {"layers": {"q": jax.random.normal(key, (4, 16, 8))}, "embed": jnp.ones((32, 16), jnp.bfloat16)},
        "projector": {"bias": jnp.arange(16.0)},
    }


def state(params: dict) -> dict:
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(optax.linear_schedule(1e-3, 0.0, 10)))
    return {"params": params, "optimizer": optimizer.init(params), "step": jnp.int32(3)}


def assert_same(restored, expected):
    assert jax.tree.structure(restored) == jax.tree.structure(expected)
    for one, other in zip(jax.tree.leaves(restored), jax.tree.leaves(expected), strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(np.asarray(one), np.asarray(other))


def test_a_policy_comes_back_bitwise_with_or_without_a_target(tmp_path: Path):
    params = policy()
    facts = {"policy": checkpoint.tree_digest(params)}
    checkpoint.save_tree(tmp_path / "checkpoint", params, iteration=3, facts=facts)
    on_host = checkpoint.restore_tree(tmp_path / "checkpoint")
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(on_host))
    assert_same(on_host, params)
    assert_same(checkpoint.restore_tree(tmp_path / "checkpoint", jax.eval_shape(lambda: params), verify="size"), params)
    manifest = load_manifest(manifest_path(tmp_path / "checkpoint"))
    assert (manifest.stage, manifest.iteration, manifest.facts) == ("checkpoint", 3, facts)
    assert checkpoint.tree_digest(on_host) == facts["policy"]


def test_an_optimizer_state_comes_back_in_its_named_tuples(tmp_path: Path):
    saved = state(policy())
    checkpoint.save_tree(tmp_path / "step", saved, iteration=1)
    assert_same(checkpoint.restore_tree(tmp_path / "step", saved), saved)


@pytest.mark.parametrize(("before", "after"), [((1, 1), (2, 4)), ((8, 1), (2, 2)), ((2, 4), (1, 1))])
def test_a_state_moves_to_any_mesh(tmp_path: Path, before: tuple[int, int], after: tuple[int, int]):
    def sharded(shape: tuple[int, int]):
        mesh = jax.make_mesh(shape, ("fsdp", "tensor"), devices=jax.devices()[: shape[0] * shape[1]])
        by_rank = [
            PartitionSpec(),
            PartitionSpec("fsdp"),
            PartitionSpec("fsdp", "tensor"),
            PartitionSpec(None, "fsdp", "tensor"),
        ]
        return lambda leaf: NamedSharding(mesh, by_rank[leaf.ndim])

    saved = state(policy())
    checkpoint.save_tree(tmp_path / "s", jax.device_put(saved, jax.tree.map(sharded(before), saved)), iteration=1)
    target = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharded(after)(x)), saved)
    restored = checkpoint.restore_tree(tmp_path / "s", target)
    assert_same(restored, saved)
    assert all(jax.tree.leaves(jax.tree.map(lambda x, y: x.sharding == y.sharding, restored, target)))


def test_a_float_may_be_asked_for_in_another_float_dtype(tmp_path: Path):
    checkpoint.save_tree(tmp_path / "c", {"w": jnp.array([1.0, 1 / 3])}, iteration=0)
    restored = checkpoint.restore_tree(tmp_path / "c", {"w": jax.ShapeDtypeStruct((2,), jnp.bfloat16)})
    np.testing.assert_array_equal(restored["w"], jnp.array([1.0, 1 / 3], jnp.bfloat16))


def test_a_tree_that_does_not_fit_is_refused_key_by_key(tmp_path: Path):
    checkpoint.save_tree(
        tmp_path / "c", {"a": {"x": jnp.ones((2, 3)), "y": jnp.ones(2)}, "n": jnp.int32(1)}, iteration=0
    )
    wanted = {"a": {"x": jnp.ones((3, 2)), "z": jnp.ones(2)}, "n": jnp.float32(1)}
    with pytest.raises(CheckpointError) as caught:
        checkpoint.restore_tree(tmp_path / "c", wanted)
    for words in (
        "missing: a.z",
        "not expected: a.y",
        "a.x is (2, 3) instead of (3, 2)",
        "n is int32 instead of float32",
    ):
        assert words in str(caught.value)


def test_a_save_counts_only_when_waited_for_and_survives_donation(tmp_path: Path):
    step = jax.jit(lambda tree: jax.tree.map(lambda x: x * 0 - 1, tree), donate_argnums=0)
    tree = {name: jnp.asarray(np.random.default_rng(0).random((1500, 1500), np.float32)) + 0 for name in "abcd"}
    expected = jax.tree.map(lambda x: np.array(x, copy=True), tree)
    step(jax.tree.map(jnp.copy, tree))  # compiled, so that the donation follows the save at once
    pending = checkpoint.start_save(tmp_path / "c", tree, iteration=0)
    jax.block_until_ready(step(tree))
    pending.wait()
    assert_same(checkpoint.restore_tree(tmp_path / "c"), expected)


def test_what_is_not_sealed_does_not_count(tmp_path: Path):
    with pytest.raises(CheckpointError, match="none.manifest.json: the file is missing"):
        checkpoint.restore_tree(tmp_path / "none")
    checkpoint.save_tree(tmp_path / "step_00000001", policy(), iteration=1)
    manifest_path(tmp_path / "step_00000001").unlink()
    assert checkpoint.newest_verified(tmp_path) == checkpoint.TrainStep(0, None, ())
    with pytest.raises(CheckpointError, match="missing"):
        checkpoint.restore_tree(tmp_path / "step_00000001")


def test_saving_again_replaces(tmp_path: Path):
    for value in (1.0, 2.0):
        checkpoint.save_tree(tmp_path / "c", {"w": jnp.full(3, value)}, iteration=0)
    assert checkpoint.restore_tree(tmp_path / "c")["w"].tolist() == [2.0] * 3


def test_the_newest_that_verifies_is_found_and_the_damaged_named(tmp_path: Path):
    assert checkpoint.newest_verified(tmp_path / "no-folder").path is None
    for step in (9, 10, 100):
        checkpoint.save_tree(tmp_path / f"step_{step:08d}", {"w": jnp.full(4, step)}, iteration=1)
    assert checkpoint.newest_verified(tmp_path) == checkpoint.TrainStep(100, tmp_path / "step_00000100", ())
    (tmp_path / "step_00000100" / "_METADATA").unlink()
    found = checkpoint.newest_verified(tmp_path)
    assert (found.step, found.path) == (10, tmp_path / "step_00000010")
    assert len(found.refused) == 1 and "step_00000100/_METADATA is missing" in found.refused[0]


def test_retention_keeps_start_and_newest_whatever_is_asked():
    assert checkpoint.policies_to_keep(5, 0) == {0, 1, 2, 3, 4, 5}
    assert checkpoint.policies_to_keep(5, 1) == {0, 4, 5}
    assert checkpoint.policies_to_keep(5, 9) == {0, 1, 2, 3, 4, 5}
    assert checkpoint.policies_to_keep(0, 1) == {0}


@pytest.mark.parametrize(("candidates", "keep"), [("runs", "link"), ("link", "runs")])
def test_pruning_removes_what_is_not_kept_however_it_is_named(tmp_path: Path, candidates: str, keep: str):
    names = [f"step_{step:08d}" for step in range(3)]
    (tmp_path / "link").symlink_to(tmp_path / "runs")
    for name in names[:2]:
        checkpoint.save_tree(tmp_path / "runs" / name, {"w": jnp.ones(2)}, iteration=1)
    removed = checkpoint.prune([tmp_path / candidates / name for name in names], keep=[tmp_path / keep / names[1]])
    assert removed == [tmp_path / candidates / names[0]]
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == [names[1], f"{names[1]}.manifest.json"]


def test_sweeping_takes_only_what_killed_saves_left(tmp_path: Path):
    (tmp_path / "step_00000001.orbax-checkpoint-tmp" / "d").mkdir(parents=True)
    (tmp_path / "step_00000002").mkdir()
    assert checkpoint.sweep(tmp_path) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["step_00000002"]


def test_the_digest_of_a_tree_depends_on_path_dtype_shape_and_bytes_only():
    base = {"a": {"w": np.arange(6, dtype=np.float32).reshape(2, 3)}, "b": np.float32(0)}
    same = {"b": jnp.float32(0), "a": {"w": jnp.asarray(np.asfortranarray(base["a"]["w"]))}}
    assert checkpoint.tree_digest(base) == checkpoint.tree_digest(same)
    others = [
        {"a": {"v": base["a"]["w"]}, "b": base["b"]},
        {"a": {"w": base["a"]["w"].view(np.int32)}, "b": base["b"]},
        {"a": {"w": base["a"]["w"].reshape(3, 2)}, "b": base["b"]},
        {"a": {"w": np.nextafter(base["a"]["w"], 9)}, "b": base["b"]},
        {"a": {"w": base["a"]["w"]}, "b": base["b"].reshape(1)},
    ]
    assert len({checkpoint.tree_digest(tree) for tree in (base, *others)}) == len(others) + 1

"""Muon turns gradients of the layers' matrices into orthogonal steps; all else takes AdamW's."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from tiny import TINY, random_params

from isrdpo_jax.models.video_llava import abstract_params, logical_axes
from isrdpo_jax.programs.update import create_state, muon
from isrdpo_jax.schema import MeshConfig
from isrdpo_jax.sharding import make_mesh, parameter_shardings

RATE, RATIO = 1e-3, 5.0
OPTIMIZER = muon(lambda count: RATE, ratio=RATIO, b1=0.9, b2=0.98, weight_decay=0.0, clip_norm=1.0)


def flat(tree) -> dict[str, jax.Array]:
    names = functools.partial(jax.tree_util.keystr, simple=True, separator=".")
    return {names(path): leaf for path, leaf in jax.tree.leaves_with_path(tree)}


def test_matrices_take_orthogonal_steps_and_all_else_takes_steps_of_one_size():
    params = random_params(TINY)
    # Of full rank and well conditioned, as Muon's five steps of Newton-Schulz assume to reach one.
    grads = jax.tree.map(lambda x: jax.random.normal(jax.random.key(x.size), x.shape, x.dtype), params)
    updates, _ = jax.jit(OPTIMIZER.update)(grads, OPTIMIZER.init(params), params)
    matrices = 0
    for name, update in flat(updates).items():
        if name.endswith("kernel") and "patch_embedding" not in name:
            matrices += 1
            wide = max(1.0, update.shape[-1] / update.shape[-2]) ** 0.5  # optax: a wider output moves by more
            sizes = np.linalg.svd(np.asarray(update), compute_uv=False) / (RATIO * RATE * wide)
            assert sizes.min() > 0.3 and sizes.max() < 1.4, name
        else:  # AdamW's first step: one rate each way (with Nesterov's look ahead, a little more)
            moved = np.abs(np.asarray(update))[np.asarray(jnp.abs(flat(grads)[name])) > 1e-2]
            np.testing.assert_allclose(moved / moved.max(), 1.0, rtol=1e-3, err_msg=name)
            assert RATE <= moved.max() < 2 * RATE, name
    assert matrices > 10


def test_moments_lie_where_their_parameters_lie():
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    params = jax.device_put(random_params(TINY), parameter_shardings(mesh, logical_axes(TINY), abstract_params(TINY)))
    places = {name: leaf.sharding for name, leaf in flat(params).items()}
    found = set()
    for path, moment in flat(create_state(params, OPTIMIZER).opt_state).items():
        for name, place in places.items():
            if path.endswith(f".mu.{name}"):
                found.add(name)
                assert moment.sharding == place, path
    assert found == places.keys()
    assert len(set(places.values())) > 3

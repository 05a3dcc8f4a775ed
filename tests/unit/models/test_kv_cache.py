"""Columns are written where each extension goes on, by every way of writing them; prefixes are rounded."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from isrdpo_jax.models.kv_cache import OWN_AXES, at_once, one_by_one, write_columns
from isrdpo_jax.schema import MeshConfig
from isrdpo_jax.sharding import activation_sharding, batch_sharding, make_mesh

BAYS, SLOTS, HEADS, COLUMNS, SIZE = 4, 3, 2, 7, 5


@pytest.fixture(scope="module")
def case() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    draw = np.random.default_rng(0)
    old = draw.standard_normal((BAYS, SLOTS, HEADS, COLUMNS, SIZE)).astype(np.float32)
    new = draw.standard_normal((BAYS, SLOTS, HEADS, 1, SIZE)).astype(np.float32)
    return old, new, draw.integers(0, COLUMNS, (BAYS, SLOTS)).astype(np.int32)


def expected(old: np.ndarray, new: np.ndarray, at: np.ndarray) -> np.ndarray:
    out = old.copy()
    for i, j in np.ndindex(*at.shape):
        out[i, j, :, at[i, j]] = new[i, j, :, 0]
    return out


@pytest.mark.parametrize("write", [at_once, one_by_one])
def test_both_ways_write_the_same(case, write):
    assert np.array_equal(jax.jit(write)(*case), expected(*case))


def test_devices_write_into_their_own_extensions(case):
    """Nothing travels between them."""
    mesh = make_mesh(MeshConfig(data=1, fsdp=4, tensor=2), jax.devices()[:8])
    caches = [jax.device_put(x, activation_sharding(mesh, OWN_AXES, x.shape)) for x in case[:2]]
    arguments = (*caches, jax.device_put(case[2], batch_sharding(mesh)))
    compiled = jax.jit(lambda old, new, at: write_columns(old, new, at, like=old)).lower(*arguments).compile()
    out = compiled(*arguments)
    assert np.array_equal(out, expected(*case))
    assert out.sharding.is_equivalent_to(caches[0].sharding, 5)
    assert not any(word in compiled.as_text() for word in ("all-gather", "all-reduce", "collective-permute"))

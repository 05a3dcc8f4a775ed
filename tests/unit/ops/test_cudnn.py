"""cuDNN's attention against the dense form: what is handed over on any machine, the kernel itself on a GPU."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from isrdpo_jax.ops.attention import PADDING, attend, packed_mask
from isrdpo_jax.ops.cudnn import cudnn_attend

RNG = np.random.default_rng(0)
SEGMENTS = np.array([[0, 0, 0, 1, 1, 2, 2], [0, 0, PADDING, 1, PADDING, 2, PADDING]])  # of odd length


def compare(dtype, c: int, tolerance: float) -> None:
    """Values and gradients, where there is no padding."""
    real = jnp.asarray(SEGMENTS != PADDING)[..., None, None]
    q, k, v, weights = (RNG.normal(size=(2, 7, heads, c)).astype(np.float32) for heads in (4, 2, 2, 4))
    mask = packed_mask(jnp.asarray(SEGMENTS))

    def total(attention, dtype, q, k, v):
        out = jnp.where(real, attention(q.astype(dtype), k.astype(dtype), v.astype(dtype), mask=mask), 0.0)
        return (out.astype(jnp.float32) * weights).sum(), out

    def run(attention, dtype):
        return jax.value_and_grad(functools.partial(total, attention, dtype), (0, 1, 2), has_aux=True)(q, k, v)

    (_, out), gradients = run(cudnn_attend, dtype)
    (_, expected), expected_gradients = run(attend, jnp.float32)
    for ours, theirs in zip((out, *gradients), (expected, *expected_gradients), strict=True):
        np.testing.assert_allclose(np.asarray(ours, np.float32), theirs, atol=tolerance * np.abs(theirs).max())


def test_what_is_handed_over_is_dense_attention(monkeypatch):
    theirs = jax.nn.dot_product_attention
    handed = []

    def dense(q, k, v, *, mask, implementation):
        handed.append((q.shape[1], mask.shape, implementation))
        return theirs(q, k, v, mask=mask, implementation="xla")

    monkeypatch.setattr(jax.nn, "dot_product_attention", dense)
    compare(jnp.float32, c=16, tolerance=1e-5)
    assert handed == [(8, (2, 1, 8, 8), "cudnn")]


@pytest.mark.device
@pytest.mark.skipif(jax.default_backend() != "gpu", reason="cuDNN runs on NVIDIA GPUs only")
def test_the_kernel_is_dense_attention():
    compare(jnp.bfloat16, c=128, tolerance=2e-2)

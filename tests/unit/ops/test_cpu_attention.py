"""Attention for CPUs against the dense form: values, gradients, ragged blocks, grouped queries, few heads at a time."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from isrdpo_jax.ops import cpu_attention
from isrdpo_jax.ops.attention import PADDING, attend, packed_mask
from isrdpo_jax.ops.cpu_attention import cpu_attend

SEGMENTS = jnp.array([[0] * 19 + [1] * 9 + [2] * 9, [0] * 17 + [PADDING] * 2 + [1] * 8 + [2] * 7 + [PADDING] * 3])


def draw(heads: int, kv_heads: int, dtype: str = "float32") -> list[jax.Array]:
    """q, k, v and the weights of a sum over the output."""
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.normal(size=(2, 37, h, 8)), dtype) for h in (heads, kv_heads, kv_heads, heads)]


def run(attention, arrays: list[jax.Array]):
    *inputs, weights = arrays

    def total(*inputs):
        out = attention(*inputs)
        return (out * weights).astype(jnp.float32).sum(), out

    gradients, out = jax.jit(jax.grad(total, (0, 1, 2), has_aux=True))(*inputs)
    return [np.asarray(x, np.float32) for x in (out, *gradients)]


@pytest.mark.parametrize(
    ("heads", "kv_heads", "block", "scores_bytes"),
    [
        (4, 4, 18, 1),  # one head at a time
        (6, 2, 18, 4 * 3 * 18 * 37),  # the three heads that read one key head
        (4, 4, 11, 3 * 4 * 11 * 37),  # three heads of a row's four
        (6, 2, 37, 2**22),  # both rows
        (4, 4, 256, 4 * 4 * 37 * 37),  # a row
    ],
)
def test_it_is_dense_attention(monkeypatch, heads: int, kv_heads: int, block: int, scores_bytes: int):
    monkeypatch.setattr(cpu_attention, "_SCORES_BYTES", scores_bytes)
    mask, arrays = packed_mask(SEGMENTS), draw(heads, kv_heads)
    ours = run(lambda q, k, v: cpu_attend(q, k, v, mask, block), arrays)
    dense = run(lambda q, k, v: attend(q, k, v, mask), arrays)
    for mine, theirs in zip(ours, dense, strict=True):
        np.testing.assert_allclose(mine, theirs, atol=3e-6)


def test_bfloat16_is_as_close_as_its_digits():
    mask = packed_mask(SEGMENTS)
    ours = run(functools.partial(cpu_attend, mask=mask), draw(6, 2, "bfloat16"))
    exact = run(functools.partial(attend, mask=mask), [x.astype(jnp.float32) for x in draw(6, 2, "bfloat16")])
    for mine, theirs in zip(ours, exact, strict=True):
        np.testing.assert_allclose(mine, theirs, atol=2**-6 * np.abs(theirs).max())


def test_a_query_that_sees_nothing_gives_no_nan():
    mask = packed_mask(jnp.full((2, 37), PADDING))
    assert all(np.isfinite(x).all() for x in run(functools.partial(cpu_attend, mask=mask), draw(4, 4)))


def test_large_scores_do_not_overflow():
    mask, arrays = packed_mask(SEGMENTS), draw(4, 4)
    arrays[0] *= 1e3
    ours, dense = run(functools.partial(cpu_attend, mask=mask), arrays), run(lambda *a: attend(*a, mask), arrays)
    np.testing.assert_allclose(ours[0], dense[0], atol=1e-4)
    assert all(np.isfinite(x).all() for x in ours)

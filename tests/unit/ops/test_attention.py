"""Masks of packed rows and both forms of attention, against a softmax written out."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from isrdpo_jax.ops.attention import PADDING, PREFIX, attend, attend_causal, attend_prefix, packed_mask

RNG = np.random.default_rng(0)


def normal(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(np.float32)


def softmax_attention(q: np.ndarray, k: np.ndarray, v: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
    """One query at a time, in float64; query head i reads key head i // (h / k)."""
    q, k, v = (x.astype(np.float64) for x in (q, k, v))
    b, n, h, c = q.shape
    group = h // k.shape[2]
    out = np.zeros_like(q)
    for i, j, head in np.ndindex(b, n, h):
        seen = np.ones(k.shape[1], bool) if mask is None else mask[i, j]
        scores = k[i, seen, head // group] @ q[i, j, head] / np.sqrt(c)
        weights = np.exp(scores - scores.max())
        out[i, j, head] = weights / weights.sum() @ v[i, seen, head // group]
    return out


def test_a_response_sees_the_prefix_and_itself_but_not_the_other():
    segments = jnp.array([[PREFIX, PREFIX, 1, 1, 2, 2, PADDING]])
    expected = np.array(
        [
            # P  P  a  a  b  b  -
            [1, 0, 0, 0, 0, 0, 0],
            [1, 1, 0, 0, 0, 0, 0],
            [1, 1, 1, 0, 0, 0, 0],
            [1, 1, 1, 1, 0, 0, 0],
            [1, 1, 0, 0, 1, 0, 0],
            [1, 1, 0, 0, 1, 1, 0],
        ],
        bool,
    )
    np.testing.assert_array_equal(packed_mask(segments)[0, :6], expected)
    assert not packed_mask(segments)[0, :, 6].any()  # nobody sees padding


def test_attend_is_softmax_attention_with_grouped_queries():
    q, k, v = normal(2, 5, 6, 4), normal(2, 7, 3, 4), normal(2, 7, 3, 4)
    mask = RNG.random((2, 5, 7)) < 0.6
    mask[..., 0] = True
    np.testing.assert_allclose(attend(q, k, v, jnp.asarray(mask)), softmax_attention(q, k, v, mask), atol=2e-6)
    np.testing.assert_allclose(attend(q, k, v, None), softmax_attention(q, k, v, None), atol=2e-6)


def test_a_query_that_sees_nothing_gives_no_nan():
    q, k, v = normal(1, 2, 2, 4), normal(1, 3, 2, 4), normal(1, 3, 2, 4)
    assert np.isfinite(attend(q, k, v, jnp.zeros((1, 2, 3), bool))).all()


@pytest.mark.parametrize("block", [1, 5, 17, 100])
def test_causal_blocks_are_the_whole_square(block: int):
    """Values and gradients, under the mask of packed rows."""
    segments = jnp.array([[0] * 9 + [1] * 4 + [2] * 4, [0] * 8 + [PADDING] + [1] * 3 + [2] * 3 + [PADDING] * 2])
    mask = packed_mask(segments)
    q, k, v, weights = normal(2, 17, 4, 8), normal(2, 17, 2, 8), normal(2, 17, 2, 8), normal(2, 17, 4, 8)

    def run(attention):
        return jax.value_and_grad(lambda q, k, v: (attention(q, k, v) * weights).sum(), (0, 1, 2))(q, k, v)

    out, gradients = run(lambda q, k, v: attend_causal(q, k, v, mask, block))
    expected, expected_gradients = run(lambda q, k, v: attend(q, k, v, mask))
    np.testing.assert_allclose(out, expected, rtol=1e-5)
    for ours, theirs in zip(gradients, expected_gradients, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=5e-6)


def test_attend_prefix_is_attend_over_prefix_and_own_keys():
    b, r, n, m, p = 2, 3, 2, 5, 4
    q, own_k, own_v = normal(b, r, n, 6, 4), normal(b, r, m, 3, 4), normal(b, r, m, 3, 4)
    prefix_k, prefix_v = normal(b, p, 3, 4), normal(b, p, 3, 4)
    mask = RNG.random((b, r, n, m)) < 0.5
    mask[0, 0, 0] = False  # an extension that sees the prefix only
    out = attend_prefix(q, prefix_k, prefix_v, own_k, own_v, jnp.asarray(mask))
    for j in range(r):
        keys, values = np.concatenate([prefix_k, own_k[:, j]], 1), np.concatenate([prefix_v, own_v[:, j]], 1)
        both = np.concatenate([np.ones((b, n, p), bool), mask[:, j]], axis=-1)
        np.testing.assert_allclose(out[:, j], softmax_attention(q[:, j], keys, values, both), atol=2e-6)

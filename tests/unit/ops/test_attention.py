"""Masks of packed rows and both forms of attention, against a softmax written out."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from isrdpo_jax.ops.attention import PADDING, PREFIX, attend, attend_behind, attend_causal, packed_mask
from isrdpo_jax.ops.cpu_attend_behind import cpu_attend_behind
from isrdpo_jax.ops.int8 import from_int8, to_int8

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


@pytest.mark.parametrize("block", [5, 17, 100])
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


def beside_prefixes(n: int, m: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Three extensions of two prefixes each in two rows: n queries, m keys and values of their own."""
    rng = np.random.default_rng(seed)
    b, r, s, p, h, kv, c = 2, 3, 2, 4, 6, 3, 4

    def draw(*shape: int) -> np.ndarray:
        return rng.normal(size=shape).astype(np.float32)

    mask = rng.random((b, r, n, m)) < 0.5
    mask[0, 0, 0] = False  # a query that sees the prefix only
    return {
        "q": draw(b, r, n, h, c),
        **{name: draw(b, r, kv, m, c) for name in ("k", "v")},
        "mask": mask,
        "prefix_k": draw(b, s, kv, c, p),
        "prefix_v": draw(b, s, kv, p, c),
        "place": rng.integers(0, s, (b, r)),
    }


def behind(x: dict[str, np.ndarray]) -> np.ndarray:
    places = jax.tree.leaves(x["prefix_k"])[0].shape[1]
    sees = x["place"][:, None] == np.arange(places)[:, None]
    arrays = [jax.tree.map(jnp.asarray, x[name]) for name in ("q", "k", "v", "mask", "prefix_k", "prefix_v")]
    return np.asarray(jax.jit(attend_behind)(*arrays, jnp.asarray(sees)))


@pytest.mark.parametrize(("n", "m"), [(1, 5), (3, 7)])
def test_an_extension_attends_to_its_own_prefix_and_its_own_positions(n: int, m: int):
    x = beside_prefixes(n, m)
    out = behind(x)
    for i, j in np.ndindex(*x["place"].shape):
        own = x["place"][i, j]
        before = x["prefix_k"][i, own].swapaxes(1, 2), x["prefix_v"][i, own]
        keys, values = (
            np.concatenate([one, x[name][i, j]], axis=1).swapaxes(0, 1) for name, one in zip("kv", before, strict=True)
        )
        mask = np.concatenate([np.ones((n, 4), bool), x["mask"][i, j]], axis=-1)
        expected = softmax_attention(x["q"][i, j][None], keys[None], values[None], mask[None])[0]
        np.testing.assert_allclose(out[i, j], expected, atol=2e-6)


def test_rounded_prefixes_are_attended_to_as_what_they_stand_for():
    x = beside_prefixes(3, 7)
    axes = {"prefix_k": -2, "prefix_v": -1}
    rounded = {name: to_int8(x[name], axis) for name, axis in axes.items()}
    meant = {name: np.asarray(from_int8(rounded[name], axis, np.dtype(np.float32))) for name, axis in axes.items()}
    np.testing.assert_allclose(behind({**x, **rounded}), behind({**x, **meant}), atol=2e-6)


def test_which_place_the_own_prefix_has_changes_no_bit():
    x = beside_prefixes(1, 5)
    turned = {**x, **{name: x[name][:, ::-1] for name in ("prefix_k", "prefix_v")}, "place": 1 - x["place"]}
    np.testing.assert_array_equal(behind(turned), behind(x))
    other = {**x, "prefix_k": x["prefix_k"].copy()}
    other["prefix_k"][0, 1 - x["place"][0, 0]] += 100.0  # what an extension does not see
    np.testing.assert_array_equal(behind(other)[0, 0], behind(x)[0, 0])


@pytest.mark.parametrize("block", [2, 3, 100])
def test_prompts_in_blocks_attend_as_whole_ones(block: int):
    """Behind the same of the prefixes beside them; queries that see none of their own included."""
    x = beside_prefixes(5, 7)
    place = np.array([1, 0])  # of the two rows
    arrays = [jnp.asarray(x[name]) for name in ("q", "k", "v", "mask", "prefix_k", "prefix_v")]
    out = jax.jit(cpu_attend_behind, static_argnums=7)(*arrays, jnp.asarray(place), block)
    whole = behind({**x, "place": np.broadcast_to(place[:, None], x["place"].shape)})
    np.testing.assert_allclose(out, whole, atol=2e-6)

"""Attention over packed rows for CPUs: few heads at a time, scores in blocks, and a backward pass of its own.

What one head needs at a time stays in a processor's cache, and is memory that the next head uses again. Scores lie as
keys by queries: each matrix product then reads its operands as they lie, and maxima and sums over the keys run along
whole rows of queries. The backward pass computes the scores again, from the queries' maxima and sums.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

RESIDUALS = "cpu_attention"  # names what the backward pass needs beside q, k and v
_BLOCK = 256  # queries
_SCORES_BYTES = 2**23  # of the scores of a block of queries of all heads, where they are computed together
MASKED = -1e30  # finite, as in `ops.attention`


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def cpu_attend(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array, block: int = _BLOCK) -> jax.Array:
    """`ops.attention.attend` where no query sees a later key: for `block` queries at a time, the keys up to the last.

    Args:
        q: [b, n, h, c]. k, v: [b, n, k, c] with h a multiple of k (c: size of a head). mask: bool[b, n, n].

    Returns:
        [b, n, h, c] in the dtype of `v`. Softmax in float32.
    """
    return _forward(q, k, v, mask, block)[0]


def _forward(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array, block: int) -> tuple[jax.Array, ...]:
    """The output, and float32[b, k, g, n] maxima and sums over the keys."""

    def head(mask, q, k, v):
        outs, tops, totals = [], [], []
        for start, end in blocks(len(mask), block):
            scores = _scores(mask[:end, start:end], q[:, start:end], k[:end])
            top = scores.max(0)
            weights = jnp.exp(scores - top)
            total = weights.sum(0)
            outs.append((_product(v[:, :end], weights.astype(v.dtype)) / total).astype(v.dtype))
            tops.append(top)
            totals.append(total)
        out, top, total = (jnp.concatenate(x, axis=-1) for x in (outs, tops, totals))
        return out.transpose(1, 2, 0), top, total

    arrays = _queries(q, k.shape[2]), _keys(k), v.transpose(0, 2, 3, 1)
    out, top, total = over_heads(head, _scores_at_a_time(q, k, block), mask.swapaxes(1, 2), *arrays)
    return _positions(out), top, total


def _attend(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array, block: int) -> tuple[jax.Array, tuple]:
    out, top, total = (checkpoint_name(x, RESIDUALS) for x in _forward(q, k, v, mask, block))
    return out, (q, k, v, mask, out, top, total)


def _gradients(block: int, residuals: tuple, cotangent: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array, None]:
    q, k, v, mask, out, top, total = residuals

    def head(mask, q, k, k_transposed, v, top, total, mean, cotangent):
        # The weights are exp(score - top) / total; it is less work to divide what they are multiplied with.
        mean, cotangent = mean / total, (cotangent / total[..., None]).astype(v.dtype)
        dq, dk, dv = [], jnp.zeros(k.shape, jnp.float32), jnp.zeros(v.shape, jnp.float32)
        for start, end in blocks(len(mask), block):
            some, given = q[:, start:end], cotangent[:, start:end]
            weights = jnp.exp(_scores(mask[:end, start:end], some, k[:end]) - top[:, start:end])
            change = weights * (_products(v[:end], given) - mean[:, start:end])
            change = (change * k.shape[-1] ** -0.5).astype(k.dtype)
            dq.append(_product(k_transposed[:, :end], change).astype(q.dtype))
            dk = dk.at[:end].add(_sums(change, some))
            dv = dv.at[:end].add(_sums(weights.astype(v.dtype), given))
        return jnp.concatenate(dq, axis=-1).transpose(1, 2, 0), dk.astype(k.dtype), dv.astype(v.dtype)

    queries = functools.partial(_queries, kv_heads=k.shape[2])
    mean = jnp.einsum("bnhc,bnhc->bnh", cotangent, out, precision="highest", preferred_element_type=jnp.float32)
    mean = mean.swapaxes(1, 2).reshape(top.shape)
    arrays = queries(q), _keys(k), k.transpose(0, 2, 3, 1), _keys(v), top, total, mean, queries(cotangent)
    dq, dk, dv = over_heads(head, _scores_at_a_time(q, k, block), mask.swapaxes(1, 2), *arrays)
    return _positions(dq), dk.swapaxes(1, 2), dv.swapaxes(1, 2), None


cpu_attend.defvjp(_attend, _gradients)


def over_heads(function: Callable, scores: int, mask: jax.Array, *arrays: jax.Array) -> Any:
    """`function` of every row's mask [b, …] and each key head's arrays [b, k, …]: of some rows together where they fit,
    or else head by head.

    A few heads together are slower than one: their products are no longer plain ones of matrices.

    Args:
        scores: how many `function` computes at a time.
    """
    b, kv_heads = arrays[0].shape[:2]
    rows = _SCORES_BYTES // (4 * scores * kv_heads)
    together = max([ways for ways in range(1, b + 1) if b % ways == 0 and ways <= rows], default=1)

    def row(one: tuple[jax.Array, ...]) -> Any:
        mask, *arrays = one
        return jax.lax.map(lambda head: function(mask, *head), tuple(arrays), batch_size=kv_heads if rows else 1)

    return jax.lax.map(row, (mask, *arrays), batch_size=together)


def blocks(n: int, block: int) -> Iterator[tuple[int, int]]:
    return ((start, min(start + block, n)) for start in range(0, n, block))


def _scores_at_a_time(q: jax.Array, k: jax.Array, block: int) -> int:
    n, heads = q.shape[1:3]
    return heads // k.shape[2] * min(block, n) * n


def _queries(x: jax.Array, kv_heads: int) -> jax.Array:
    """[b, n, h, c] -> [b, k, g, n, c]: together the g heads that read one key head."""
    b, n, h, c = x.shape
    return x.reshape(b, n, kv_heads, h // kv_heads, c).transpose(0, 2, 3, 1, 4)


def _positions(x: jax.Array) -> jax.Array:
    """The way back: [b, k, g, n, c] -> [b, n, h, c]."""
    b, kv_heads, group, n, c = x.shape
    return x.transpose(0, 3, 1, 2, 4).reshape(b, n, kv_heads * group, c)


def _keys(x: jax.Array) -> jax.Array:
    """[b, m, k, c] -> [b, k, m, c]."""
    return x.swapaxes(1, 2)


def _scores(mask: jax.Array, q: jax.Array, k: jax.Array) -> jax.Array:
    """float32[m, g, n] of queries [g, n, c] and keys [m, c] under bool[m, n]."""
    return jnp.where(mask[:, None], _products(k, q) * k.shape[-1] ** -0.5, MASKED)


def _products(x: jax.Array, y: jax.Array) -> jax.Array:
    """x [m, c] with each of y [g, n, c]: float32[m, g, n]."""
    flat = jnp.matmul(x, y.reshape(-1, y.shape[-1]).T, preferred_element_type=jnp.float32)
    return flat.reshape(-1, *y.shape[:-1])


def _product(x: jax.Array, weights: jax.Array) -> jax.Array:
    """x [c, m] @ weights [m, g, n] -> float32[c, g, n]."""
    flat = jnp.matmul(x, weights.reshape(len(weights), -1), preferred_element_type=jnp.float32)
    return flat.reshape(-1, *weights.shape[1:])


def _sums(weights: jax.Array, y: jax.Array) -> jax.Array:
    """Of y [g, n, c] over all queries, by weights [m, g, n]: float32[m, c]."""
    flat = weights.reshape(len(weights), -1), y.reshape(-1, y.shape[-1])
    return jnp.matmul(*flat, preferred_element_type=jnp.float32)

"""Attention over packed rows, and of extensions behind the prefixes that they share. Softmax in float32."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from isrdpo_jax.ops.int8 import Int8, unscaled

PREFIX = 0  # segment id of the positions that every segment of a row sees
PADDING = -1  # segment id of positions that nobody sees

_MASKED = -1e30  # finite, so that a fully masked (padding) query gives a harmless uniform average and no NaN


def packed_mask(segments: jax.Array) -> jax.Array:
    """Who sees whom in a row that packs several segments behind one prefix.

    A position sees the earlier positions of the prefix and of its own segment:

        row  [P P | a a | b b]     a sees P P a,  b sees P P b,  P sees P only

    Args:
        segments: int[b, n]; `PREFIX`, 1, 2, … or `PADDING`.

    Returns:
        bool[b, n, n], queries by keys.
    """
    n = segments.shape[-1]
    query, key = segments[..., :, None], segments[..., None, :]
    causal = jnp.arange(n)[:, None] >= jnp.arange(n)[None, :]
    return causal & (key != PADDING) & ((key == PREFIX) | (key == query))


def attend(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array | None) -> jax.Array:
    """Dense grouped-query attention.

    Args:
        q: [b, n, h, c]. k, v: [b, m, k, c] with h a multiple of k (c: size of a head).
        mask: bool[b, n, m], or None when every key is seen.

    Returns:
        [b, n, h, c] in the dtype of `v`.
    """
    b, n, h, c = q.shape
    kv_heads = k.shape[2]
    # Heads before positions: left to choose, the compiler for CPUs multiplies along strided rows, at a third the speed.
    grouped = q.reshape(b, n, kv_heads, h // kv_heads, c).transpose(0, 2, 3, 1, 4)
    k, v = k.swapaxes(1, 2), v.swapaxes(1, 2)
    logits = jnp.einsum("bkgnc,bkmc->bkgnm", grouped, k, preferred_element_type=jnp.float32) * c**-0.5
    if mask is not None:
        logits = jnp.where(mask[:, None, None], logits, _MASKED)
    weights = jax.nn.softmax(logits, axis=-1).astype(v.dtype)
    out = jnp.einsum("bkgnm,bkmc->bkgnc", weights, v)
    return out.transpose(0, 3, 1, 2, 4).reshape(b, n, h, c)


def attend_causal(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array, block: int = 256) -> jax.Array:
    """`attend` where no query sees a later key: for `block` queries at a time, of the keys up to the last of them.

    Half the work of the whole square, on pieces that a processor's cache holds.
    """
    n = q.shape[1]
    pieces = []
    for start in range(0, n, block):
        end = min(start + block, n)
        pieces.append(attend(q[:, start:end], k[:, :end], v[:, :end], mask[:, start:end, :end]))
    return jnp.concatenate(pieces, axis=1)


def attend_behind(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    mask: jax.Array,
    prefix_k: jax.Array | Int8,
    prefix_v: jax.Array | Int8,
    sees: jax.Array,
) -> jax.Array:
    """Attention of extensions, each of which continues one of the prefixes beside it; nothing is copied per extension.

    Every prefix is weighed by itself, and one that an extension does not see adds an exact 0: so what comes out does
    not depend, in any bit, on which of the prefixes is the extension's own.

    Args:
        q: [b, r, n, h, c], queries of n positions of r extensions. k, v: [b, r, k, m, c], the extensions' own.
        mask: bool[b, r, n, m], who sees which of its own.
        prefix_k: [b, s, k, c, p]. prefix_v: [b, s, k, p, c]. s prefixes, which all extensions beside them may read.
        sees: bool[b, s, r], which of them each extension continues.

    Returns:
        [b, r, n, h, c] in the dtype of v: one softmax over all that is seen.
    """
    b, r, n, h, c = q.shape
    s, kv_heads = sees.shape[1], k.shape[2]
    groups = h // kv_heads
    query = q.reshape(b, r, n, kv_heads, groups, c).transpose(0, 3, 1, 4, 2, 5)  # [b, k, r, g, n, c]
    beside = jnp.broadcast_to(query.reshape(b, 1, kv_heads, -1, c), (b, s, kv_heads, r * groups * n, c))
    alone = query.swapaxes(1, 2).reshape(b, r, kv_heads, groups * n, c)

    keys, key_scale = unscaled(prefix_k, k.dtype)
    values, value_scale = unscaled(prefix_v, v.dtype)
    # x: (r, g, n).
    shared = jnp.einsum("bskxc,bskcp->bskxp", beside, keys, preferred_element_type=jnp.float32)
    if key_scale is not None:
        shared *= key_scale
    seen = jnp.broadcast_to(sees[:, :, :, None], (b, s, r, groups * n)).reshape(b, s, 1, -1, 1)
    shared = jnp.where(seen, shared * c**-0.5, _MASKED)  # [b, s, k, x, p]
    own = jnp.einsum("brkyc,brkmc->brkym", alone, k, preferred_element_type=jnp.float32)  # y: (g, n)
    seen = jnp.broadcast_to(mask[:, :, None], (b, r, groups, *mask.shape[2:])).reshape(b, r, 1, groups * n, -1)
    own = jnp.where(seen, own * c**-0.5, _MASKED)

    def by_extension(x: jax.Array) -> jax.Array:
        """[b, k, x, ...] -> [b, r, k, y, ...]."""
        return x.reshape(b, kv_heads, r, groups * n, *x.shape[3:]).swapaxes(1, 2)

    highest = jnp.maximum(by_extension(shared.max((1, -1))), own.max(-1))
    shared = jnp.exp(shared - highest.swapaxes(1, 2).reshape(b, 1, kv_heads, -1, 1))
    own = jnp.exp(own - highest[..., None])
    total = by_extension(shared.sum(-1).sum(1)) + own.sum(-1)
    weights = (shared if value_scale is None else shared * value_scale).astype(v.dtype)
    out = jnp.einsum("bskxp,bskpc->bskxc", weights, values, preferred_element_type=jnp.float32)
    out = by_extension(out.sum(1))
    out += jnp.einsum("brkym,brkmc->brkyc", own.astype(v.dtype), v, preferred_element_type=jnp.float32)
    out = (out / total[..., None]).astype(v.dtype)
    return out.reshape(b, r, kv_heads, groups, n, c).transpose(0, 1, 4, 2, 3, 5).reshape(b, r, n, h, c)

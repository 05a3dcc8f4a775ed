"""Attention over packed rows, and over a shared prefix joined with a row's own keys. Softmax in float32."""

from __future__ import annotations

import jax
import jax.numpy as jnp

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


def attend_prefix(
    q: jax.Array, prefix_k: jax.Array, prefix_v: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array
) -> jax.Array:
    """Attention of r extensions of each prefix; the prefix is read where it lies, not copied per extension.

    Args:
        q: [b, r, n, h, c], queries of the extensions.
        prefix_k, prefix_v: [b, p, k, c], one prefix per row, seen by all of its extensions.
        k, v: [b, r, m, k, c], the extensions' own keys and values.
        mask: bool[b, r, n, m] over the own keys.

    Returns:
        [b, r, n, h, c]: one softmax over the p + m keys.
    """
    b, r, n, h, c = q.shape
    p, kv_heads = prefix_k.shape[1], prefix_k.shape[2]
    grouped = q.reshape(b, r, n, kv_heads, h // kv_heads, c).transpose(0, 3, 1, 4, 2, 5)  # [b, k, r, g, n, c]
    prefix_k, prefix_v = prefix_k.swapaxes(1, 2), prefix_v.swapaxes(1, 2)
    k, v = k.transpose(0, 3, 1, 2, 4), v.transpose(0, 3, 1, 2, 4)
    to_prefix = jnp.einsum("bkrgnc,bkpc->bkrgnp", grouped, prefix_k, preferred_element_type=jnp.float32)
    to_own = jnp.einsum("bkrgnc,bkrmc->bkrgnm", grouped, k, preferred_element_type=jnp.float32)
    to_own = jnp.where(mask[:, None, :, None], to_own * c**-0.5, _MASKED)
    weights = jax.nn.softmax(jnp.concatenate([to_prefix * c**-0.5, to_own], axis=-1), axis=-1).astype(v.dtype)
    out = jnp.einsum("bkrgnp,bkpc->bkrgnc", weights[..., :p], prefix_v)
    out += jnp.einsum("bkrgnm,bkrmc->bkrgnc", weights[..., p:], v)
    return out.transpose(0, 2, 4, 1, 3, 5).reshape(b, r, n, h, c)

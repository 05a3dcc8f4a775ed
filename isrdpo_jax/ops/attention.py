"""Attention over packed rows, and of extensions behind the prefixes that they share. Softmax in float32."""

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


def attend_behind(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    mask: jax.Array,
    prefix: tuple[jax.Array, jax.Array],
    sees: jax.Array,
    past: tuple[jax.Array, jax.Array] | None = None,
    past_mask: jax.Array | None = None,
) -> jax.Array:
    """Attention of extensions, each of which continues one of the prefixes beside it; nothing is copied per extension.

    Every prefix is weighed by itself, and one that an extension does not see adds an exact 0: so what comes out does
    not depend, in any bit, on which of the prefixes is the extension's own.

    Args:
        q: [b, r, n, h, c], the queries of n new positions of r extensions. k, v: [b, r, n, k, c], theirs.
        mask: bool[b, r, n, n], who of the new positions sees whom.
        prefix: keys and values [b, s, k, p, c]: s prefixes, whose keys all extensions of a row may read.
        sees: bool[b, s, r], which of them each extension continues.
        past: keys and values [b, r, k, m, c] of the extensions' earlier positions; none where there are none.
        past_mask: bool[b, r, m].

    Returns:
        [b, r, n, h, c] in the dtype of v: one softmax over all that is seen.
    """
    b, r, n, h, c = q.shape
    s, kv_heads = sees.shape[1], k.shape[3]
    groups = h // kv_heads
    scale = c**-0.5
    query = q.reshape(b, r, n, kv_heads, groups, c).transpose(0, 3, 1, 4, 2, 5)  # [b, k, r, g, n, c]
    own = query.swapaxes(1, 2).reshape(b, r, kv_heads, groups * n, c)
    beside = jnp.broadcast_to(query.reshape(b, 1, kv_heads, -1, c), (b, s, kv_heads, r * groups * n, c))

    # Keys times queries and not the reverse: the compiler for CPUs is fast where the long side comes first.
    logits = jnp.einsum("bskpc,bskxc->bskpx", prefix[0], beside, preferred_element_type=jnp.float32).swapaxes(-1, -2)
    seen = jnp.broadcast_to(sees[:, :, :, None], (b, s, r, groups * n)).reshape(b, s, 1, -1, 1)
    scores = [jnp.where(seen, logits * scale, _MASKED)]  # [b, s, k, x, p], x: (r, g, n)

    def to_own(keys: jax.Array, visible: jax.Array) -> jax.Array:
        """[b, r, k, m, c] -> [b, r, k, y, m], y: (g, n); visible: bool[b, r, n or 1, m]."""
        logits = jnp.einsum("brkyc,brkmc->brkym", own, keys, preferred_element_type=jnp.float32)
        visible = jnp.broadcast_to(visible[:, :, None], (b, r, groups, n, visible.shape[-1]))
        return jnp.where(visible.reshape(b, r, 1, groups * n, -1), logits * scale, _MASKED)

    k, v = k.swapaxes(2, 3), v.swapaxes(2, 3)
    scores.append(to_own(k, mask))
    values = [prefix[1], v]
    if past is not None and past_mask is not None:
        scores.append(to_own(past[0], past_mask[:, :, None]))
        values.append(past[1])

    def of_extensions(x: jax.Array) -> jax.Array:
        """What was computed beside the prefixes, [b, k, x, ...], as [b, r, k, y, ...]."""
        return x.reshape(b, kv_heads, r, groups * n, *x.shape[3:]).swapaxes(1, 2)

    highest = of_extensions(scores[0].max((1, -1)))
    for score in scores[1:]:
        highest = jnp.maximum(highest, score.max(-1))
    beside_highest = highest.swapaxes(1, 2).reshape(b, 1, kv_heads, -1, 1)
    weights = [jnp.exp(scores[0] - beside_highest), *(jnp.exp(score - highest[..., None]) for score in scores[1:])]
    total = of_extensions(weights[0].sum(-1).sum(1))
    out = jnp.einsum("bskxp,bskpc->bskxc", weights[0].astype(v.dtype), prefix[1], preferred_element_type=jnp.float32)
    out = of_extensions(out.sum(1))
    for weight, value in zip(weights[1:], values[1:], strict=True):
        total += weight.sum(-1)
        out += jnp.einsum("brkym,brkmc->brkyc", weight.astype(v.dtype), value, preferred_element_type=jnp.float32)
    out = (out / total[..., None]).astype(v.dtype)
    return out.reshape(b, r, kv_heads, groups, n, c).transpose(0, 1, 4, 2, 3, 5).reshape(b, r, n, h, c)

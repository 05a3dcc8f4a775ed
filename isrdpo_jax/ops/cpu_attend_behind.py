"""Attention of prompts behind the prefix that they share, for CPUs: few heads and queries at a time.

The scores of many queries and a whole video would be written to memory and read back for each step of a softmax; in
blocks they stay in a processor's cache.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from isrdpo_jax.ops.cpu_attention import MASKED, blocks, over_heads

_BLOCK = 128  # queries of a prompt


def cpu_attend_behind(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    mask: jax.Array,
    prefix_k: jax.Array,
    prefix_v: jax.Array,
    place: jax.Array,
    block: int = _BLOCK,
) -> jax.Array:
    """`ops.attention.attend_behind` where all extensions continue the same of the prefixes beside them.

    It is read where it lies, a head at a time: a copy of the whole would go through memory.

    Args:
        q: [b, r, n, h, c]. k, v: [b, r, k, m, c]. mask: bool[b, r, n, m]. prefix_k: [b, s, k, c, p].
        prefix_v: [b, s, k, p, c]. place: int[b], which of the s.

    Returns:
        [b, r, n, h, c] in the dtype of v. Softmax in float32.
    """
    b, r, n, h, c = q.shape
    kv_heads, m = k.shape[2:4]
    groups, p = h // kv_heads, prefix_k.shape[-1]

    def head(mask: jax.Array, q: jax.Array, k: jax.Array, v: jax.Array, where: jax.Array) -> jax.Array:
        keys, values = (
            jax.lax.dynamic_slice(x, (*where, 0, 0), (1, 1, 1, *x.shape[3:]))[0, 0, 0] for x in (prefix_k, prefix_v)
        )
        outs = []
        for i, start, end in ((i, *ends) for i in range(r) for ends in blocks(n, block)):
            queries = q[i, start:end].reshape(-1, c)  # (n, g)
            seen = jnp.repeat(mask[i, start:end], groups, axis=0)
            shared = jnp.matmul(queries, keys, preferred_element_type=jnp.float32) * c**-0.5
            own = jnp.matmul(queries, k[i].T, preferred_element_type=jnp.float32) * c**-0.5
            own = jnp.where(seen, own, MASKED)
            top = jnp.maximum(shared.max(-1), own.max(-1))[:, None]
            shared, own = jnp.exp(shared - top), jnp.exp(own - top)
            out = jnp.matmul(shared.astype(v.dtype), values, preferred_element_type=jnp.float32)
            out += jnp.matmul(own.astype(v.dtype), v[i], preferred_element_type=jnp.float32)
            outs.append((out / (shared.sum(-1) + own.sum(-1))[:, None]).astype(v.dtype))
        return jnp.concatenate(outs).reshape(r, n, groups, c)

    queries = q.reshape(b, r, n, kv_heads, groups, c).transpose(0, 3, 1, 2, 4, 5)
    scores = groups * min(block, n) * (p + m)
    rows, heads = jnp.meshgrid(jnp.arange(b), jnp.arange(kv_heads), indexing="ij")
    where = jnp.stack([rows, jnp.broadcast_to(place[:, None], rows.shape), heads], axis=-1)
    out = over_heads(head, scores, mask, queries, k.swapaxes(1, 2), v.swapaxes(1, 2), where)
    return out.transpose(0, 2, 3, 1, 4, 5).reshape(b, r, n, h, c)

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
    block: int = _BLOCK,
) -> jax.Array:
    """`ops.attention.attend_behind` where all extensions continue the one prefix beside them.

    Args:
        q: [b, r, n, h, c]. k, v: [b, r, k, m, c]. mask: bool[b, r, n, m]. prefix_k: [b, 1, k, c, p].
        prefix_v: [b, 1, k, p, c].

    Returns:
        [b, r, n, h, c] in the dtype of v. Softmax in float32.
    """
    b, r, n, h, c = q.shape
    kv_heads, m = k.shape[2:4]
    groups, p = h // kv_heads, prefix_k.shape[-1]

    def head(
        mask: jax.Array, q: jax.Array, k: jax.Array, v: jax.Array, prefix_k: jax.Array, prefix_v: jax.Array
    ) -> jax.Array:
        outs = []
        for i, start, end in ((i, *ends) for i in range(r) for ends in blocks(n, block)):
            queries = q[i, start:end].reshape(-1, c)  # (n, g)
            seen = jnp.repeat(mask[i, start:end], groups, axis=0)
            shared = jnp.matmul(queries, prefix_k, preferred_element_type=jnp.float32) * c**-0.5
            own = jnp.matmul(queries, k[i].T, preferred_element_type=jnp.float32) * c**-0.5
            own = jnp.where(seen, own, MASKED)
            top = jnp.maximum(shared.max(-1), own.max(-1))[:, None]
            shared, own = jnp.exp(shared - top), jnp.exp(own - top)
            out = jnp.matmul(shared.astype(v.dtype), prefix_v, preferred_element_type=jnp.float32)
            out += jnp.matmul(own.astype(v.dtype), v[i], preferred_element_type=jnp.float32)
            outs.append((out / (shared.sum(-1) + own.sum(-1))[:, None]).astype(v.dtype))
        return jnp.concatenate(outs).reshape(r, n, groups, c)

    queries = q.reshape(b, r, n, kv_heads, groups, c).transpose(0, 3, 1, 2, 4, 5)
    scores = groups * min(block, n) * (p + m)
    out = over_heads(head, scores, mask, queries, k.swapaxes(1, 2), v.swapaxes(1, 2), prefix_k[:, 0], prefix_v[:, 0])
    return out.transpose(0, 2, 3, 1, 4, 5).reshape(b, r, n, h, c)

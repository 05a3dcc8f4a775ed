"""cuDNN's flash attention on NVIDIA GPUs: the scores [b, h, n, n] are never written down."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def cudnn_attend(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array) -> jax.Array:
    """`ops.attention.attend` in bfloat16 or float16; heads of a multiple of 8, at most 128 (256 from Hopper on).

    Args:
        q: [b, n, h, c]. k, v: [b, m, k, c]. mask: bool[b, n, m], handed over as a bias that all heads share.

    Returns:
        [b, n, h, c].
    """
    n, m = mask.shape[1:]
    rows, columns = n % 2, m % 2  # a gradient under a bias needs even lengths
    q = jnp.pad(q, ((0, 0), (0, rows), (0, 0), (0, 0)))
    k, v = (jnp.pad(x, ((0, 0), (0, columns), (0, 0), (0, 0))) for x in (k, v))
    mask = jnp.pad(mask, ((0, 0), (0, rows), (0, columns)))[:, None]
    return jax.nn.dot_product_attention(q, k, v, mask=mask, implementation="cudnn")[:, :n]

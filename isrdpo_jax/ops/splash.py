"""Splash attention on TPUs: packed rows whose scores [n, n] are never written down, and blocks nobody sees skipped."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas.ops.tpu import splash_attention as splash

_LANES = 128  # a block of scores is so many columns wide, or a multiple
_BLOCK = 512


def section_mask(sections: Sequence[int]) -> np.ndarray:
    """`ops.attention.packed_mask` of rows that are full: bool[n, n].

    Args:
        sections: how many columns the prefix has, and each segment behind it; n in all.
    """
    segments = np.repeat(np.arange(len(sections)), sections)
    return np.tri(len(segments), dtype=bool) & ((segments == 0) | (segments == segments[:, None]))


def splash_attend(
    q: jax.Array, k: jax.Array, v: jax.Array, padding: jax.Array, *, sections: Sequence[int]
) -> jax.Array:
    """`ops.attention.attend` under the mask of packed rows; positions of padding see each other instead.

    Args:
        q: [b, n, h, c]. k, v: [b, n, k, c]. padding: bool[b, n].
        sections: columns of the prefix and of each segment behind it, the same in every row.

    Returns:
        [b, n, h, c] in the dtype of q.

    Raises:
        ValueError: when the sections do not add up to n. (The kernel would return NaN.)
    """
    n, h, c = q.shape[1:]
    if sum(sections) != n:
        raise ValueError(f"sections {tuple(sections)} make {sum(sections)} columns, and there are {n}")
    block = min(_BLOCK, -(-n // _LANES) * _LANES)
    more = -n % block  # empty columns of their own, which fill the last block
    mask = section_mask((*sections, more))
    sizes = splash.BlockSizes(
        block_q=block, block_kv=block, block_q_dkv=block, block_kv_dkv=block, block_q_dq=block, block_kv_dq=block
    )
    kernel = splash.make_splash_mha_single_device(splash.MultiHeadMask([splash.NumpyMask(mask)] * h), block_sizes=sizes)
    q, k, v = (jnp.pad(x, ((0, 0), (0, more), (0, 0), (0, 0))).swapaxes(1, 2) for x in (q * c**-0.5, k, v))
    ids = jnp.pad(padding, ((0, 0), (0, more)), constant_values=True).astype(jnp.int32)
    return jax.vmap(kernel)(q, k, v, splash.SegmentIds(ids, ids)).swapaxes(1, 2)[:, :n]

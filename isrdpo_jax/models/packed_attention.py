"""Attention over packed rows, by the implementation that the configuration names; all of them give the same."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import jax

from isrdpo_jax.ops.attention import PADDING, attend_causal, packed_mask
from isrdpo_jax.ops.cpu_attention import cpu_attend
from isrdpo_jax.ops.cudnn import cudnn_attend
from isrdpo_jax.ops.splash import splash_attend
from isrdpo_jax.schema import AttentionKind
from isrdpo_jax.sharding import on_shards

_HEADS = ("batch", None, "heads", None)  # of q, k and v


def packed_attention(
    kind: AttentionKind, segments: jax.Array, sections: Sequence[int] | None, like: jax.Array
) -> Callable[[jax.Array, jax.Array, jax.Array], jax.Array]:
    """A function of q [b, n, h, c], k and v [b, n, k, c] -> [b, n, h, c]; what padding gets is meaningless.

    Args:
        kind: as `ModelConfig.on` decided it; undecided is `cpu`.
        segments: int[b, n], see `ops.attention.packed_mask`.
        sections: columns of the prefix and of each segment behind it, where they are the same in every row. Splash
            attention, whose mask is part of the program, needs them; rows without them are attended as by `xla`.
        like: a parameter, whose mesh the arrays lie on.
    """
    if kind == "splash" and sections is not None:
        kernel = functools.partial(splash_attend, sections=sections)
        sharded = on_shards(kernel, (_HEADS, _HEADS, _HEADS, ("batch", None)), like)
        padding = segments == PADDING
        return lambda q, k, v: sharded(q, k, v, padding)
    mask = packed_mask(segments)
    if kind in ("auto", "cpu"):
        sharded = on_shards(cpu_attend, (_HEADS, _HEADS, _HEADS, ("batch", None, None)), like)
        return lambda q, k, v: sharded(q, k, v, mask)
    return functools.partial(cudnn_attend if kind == "cudnn" else attend_causal, mask=mask)

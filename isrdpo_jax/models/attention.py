"""Attention by the implementation that the configuration names, or the device wants; all of them give the same."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from isrdpo_jax.models.kv_cache import OWN_AXES, PREFIX_AXES, at_place
from isrdpo_jax.ops.attention import PADDING, attend_behind, attend_causal, packed_mask
from isrdpo_jax.ops.cpu_attend_behind import cpu_attend_behind
from isrdpo_jax.ops.cpu_attention import cpu_attend
from isrdpo_jax.ops.cudnn import cudnn_attend
from isrdpo_jax.ops.int8 import Int8, from_int8
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


def attention_behind(kind: AttentionKind, like: jax.Array) -> Callable:
    """`ops.attention.attend_behind`, or what takes its place: a CPU reads whole prompts in blocks.

    Who continues which prefix is given by `sees`, bool[b, s, r], or, where it is the same one for all extensions of a
    row, by its `place`, int[b].

    Args:
        kind: see `packed_attention`. like: a parameter, whose mesh the arrays lie on.
    """
    queries = ("batch", None, None, "heads", None)
    axes = (queries, OWN_AXES, OWN_AXES, ("batch", None, None, None), PREFIX_AXES, PREFIX_AXES, ("batch",))
    in_blocks = on_shards(cpu_attend_behind, axes, like)
    cpu = kind in ("auto", "cpu")

    def attend(
        q: jax.Array,
        k: jax.Array,
        v: jax.Array,
        mask: jax.Array,
        prefix_k: jax.Array | Int8,
        prefix_v: jax.Array | Int8,
        sees: jax.Array | None,
        place: jax.Array | None,
    ) -> jax.Array:
        if place is None:
            assert sees is not None
            return attend_behind(q, k, v, mask, prefix_k, prefix_v, sees)
        blocks = cpu and q.shape[2] > 1
        if not blocks or isinstance(prefix_k, Int8):
            prefix_k, prefix_v = at_place((prefix_k, prefix_v), place)
            place = jnp.zeros_like(place)
        if blocks:
            return in_blocks(q, k, v, mask, from_int8(prefix_k, -2, k.dtype), from_int8(prefix_v, -1, v.dtype), place)
        return attend_behind(q, k, v, mask, prefix_k, prefix_v, jnp.ones((len(q), 1, q.shape[1]), bool))

    return attend

"""Forward over packed rows: one prefix, several segments behind it, log-probs only where something is predicted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from isrdpo_jax.models.video_llava import VideoLlava
from isrdpo_jax.ops.attention import PREFIX
from isrdpo_jax.ops.logprobs import token_logprobs
from isrdpo_jax.sharding import shard_shape

LOGITS_BYTES = 2**27  # of float32 logits that a device holds at a time
Array = Any  # jax.Array inside a program; numpy while a batch is built on the host


class PackedRows(NamedTuple):
    """Rows as `data.packing` lays them out behind the prefix.

    tokens, positions, segments: int32[b, n]; positions count the prefix.
    sources: int32[b, ...] index into tokens of the position that predicts; targets: int32[b, ...] the token predicted.
    """

    tokens: Array
    positions: Array
    segments: Array
    sources: Array
    targets: Array


def packed_logprobs(
    model: VideoLlava,
    prefix_ids: jax.Array,
    features: jax.Array | None,
    rows: PackedRows,
    responses: Sequence[int] | None = None,
) -> jax.Array:
    """log p(target) for every prediction of every row: float32, shaped like `rows.targets`.

    Args:
        prefix_ids: int[s], the text before the video.
        features: [b, n_visual, d_vision], or None for rows whose video is masked (positions leave room for it).
        responses: how many columns each segment has, where every row ends with the same; see `packed_attention`.
    """
    b = rows.tokens.shape[0]
    if features is None:
        prefix = jnp.broadcast_to(
            model.llama.embed(prefix_ids, model.dtype), (b, *prefix_ids.shape, model.llama.config.hidden_size)
        )
    else:
        prefix = model.embed_prefix(prefix_ids, features)
    p = prefix.shape[1]
    x = jnp.concatenate([prefix, model.llama.embed(rows.tokens, model.dtype)], axis=1)
    positions = jnp.concatenate([jnp.broadcast_to(jnp.arange(p), (b, p)), rows.positions], axis=1)
    segments = jnp.concatenate([jnp.full((b, p), PREFIX, rows.segments.dtype), rows.segments], axis=1)
    sections = None if responses is None else (x.shape[1] - sum(responses), *responses)
    hidden = model.llama(x, positions, segments, sections)[:, p:]
    sources, targets = rows.sources.reshape(b, -1), rows.targets.reshape(b, -1)
    chosen = jax.vmap(lambda states, at: states[at])(hidden, sources)
    head = model.llama.head[...]
    rows_here, words_here = shard_shape((b, head.shape[-1]), ("batch", "vocab"), head)
    chunk = max(1, LOGITS_BYTES // (4 * rows_here * words_here))
    return token_logprobs(chosen, model.llama.logits, targets, chunk).reshape(rows.targets.shape)

"""The shared prefix of everything that is asked about a video: system line and visual tokens."""

from __future__ import annotations

import functools

import jax

from isrdpo_jax.models.kv_cache import KVPrefix
from isrdpo_jax.models.video_llava import Params, build
from isrdpo_jax.schema import ModelConfig


@functools.partial(jax.jit, static_argnames="config")
def prefill(params: Params, prefix_ids: jax.Array, features: jax.Array, *, config: ModelConfig) -> KVPrefix:
    """The cache of `system + video`, computed once and read by every response, description and judgement.

    Args:
        prefix_ids: int[s], the text before the video. features: [b, n, d_vision].

    Returns:
        The prefix of s + n positions, [b, k, …] a layer.
    """
    model = build(config, params)
    return model.llama.prefill(model.embed_prefix(prefix_ids, features))

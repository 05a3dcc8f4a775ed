"""Log-probs of the next token behind prompts: the judge's two letters."""

from __future__ import annotations

import functools

import jax

from isrdpo_jax.models.kv_cache import KVCache
from isrdpo_jax.models.video_llava import Params, build
from isrdpo_jax.programs.generate import read_prompts
from isrdpo_jax.schema import ModelConfig


@functools.partial(jax.jit, static_argnames="config")
def next_token_logprobs(
    params: Params,
    prefix: KVCache,
    prompts: jax.Array,
    lengths: jax.Array,
    candidates: jax.Array,
    *,
    config: ModelConfig,
) -> jax.Array:
    """log p(candidate | prefix, prompt) for each candidate token.

    Args:
        prompts: int[b, r, m] left-aligned, lengths int[b, r]. candidates: int[c].

    Returns:
        float32[b, r, c].
    """
    logits, _ = read_prompts(build(config, params), prefix, prompts, lengths, columns=0)
    return jax.nn.log_softmax(logits, axis=-1)[..., candidates]

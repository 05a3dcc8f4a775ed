"""Decoding r continuations of each prefix, with a KV cache and an early exit."""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from isrdpo_jax.models.kv_cache import KVCache
from isrdpo_jax.models.video_llava import Params, VideoLlava, build
from isrdpo_jax.ops.sampling import sample
from isrdpo_jax.schema import ModelConfig


class Generated(NamedTuple):
    """tokens: int32[b, r, max_new], EOS included, 0 behind it; lengths: int32[b, r]; finished: bool[b, r], EOS came."""

    tokens: jax.Array
    lengths: jax.Array
    finished: jax.Array


def read_prompts(
    model: VideoLlava, prefix: KVCache, prompts: jax.Array, lengths: jax.Array, columns: int
) -> tuple[jax.Array, KVCache]:
    """Run the prompts behind their prefix.

    Args:
        prompts: int[b, r, m], left-aligned; lengths: int[b, r].
        columns: empty cache columns to leave for decoding.

    Returns:
        float32[b, r, v] logits behind each prompt's last token, and the prompts' cache.
    """
    b, r, m = prompts.shape
    p = prefix.k.shape[2]
    shape = (prefix.k.shape[0], b, r, m, *prefix.k.shape[3:])
    own = KVCache(jnp.zeros(shape, prefix.k.dtype), jnp.zeros(shape, prefix.v.dtype))
    column = jnp.arange(m)
    mask = (column[:, None] >= column[None, :]) & (column < lengths[..., None, None])
    positions = jnp.broadcast_to(p + column, (b, r, m))
    x = model.llama.embed(prompts, model.dtype)
    hidden, own = model.llama.extend(x, positions, prefix, own, jnp.int32(0), mask)
    last = jnp.take_along_axis(hidden, jnp.maximum(lengths - 1, 0)[..., None, None], axis=2)[:, :, 0]
    return model.llama.logits(last), own.grown(columns)


@functools.partial(jax.jit, static_argnames=("config", "max_new_tokens", "temperature", "top_p", "top_k", "eos_id"))
def generate(
    params: Params,
    prefix: KVCache,
    prompts: jax.Array,
    lengths: jax.Array,
    keys: jax.Array,
    *,
    config: ModelConfig,
    max_new_tokens: int,
    eos_id: int,
    temperature: float,
    top_p: float = 1.0,
    top_k: int = 0,
) -> Generated:
    """Sample a continuation of each prompt. A row's tokens depend on its own prefix, prompt and key only.

    Args:
        prefix: cache of [layers, b, p, k, c].
        prompts: int[b, r, m] left-aligned. lengths: int[b, r]; length 0 marks an empty row.
        keys: key[b, r]; token j is drawn with fold_in(key, j).
    """
    model = build(config, params)
    b, r, m = prompts.shape
    p = prefix.k.shape[2]
    logits, own = read_prompts(model, prefix, prompts, lengths, max_new_tokens)
    column = jnp.arange(m + max_new_tokens)
    in_prompt = column < lengths[..., None]

    def draw(logits: jax.Array, step: jax.Array) -> jax.Array:
        step_keys = jax.vmap(lambda key: jax.random.fold_in(key, step))(keys.ravel()).reshape(keys.shape)
        return sample(logits, step_keys, temperature=temperature, top_p=top_p, top_k=top_k)

    def running(state) -> jax.Array:
        step, _, _, _, done, _ = state
        return (step < max_new_tokens) & ~done.all()

    def step(state):
        step, logits, own, tokens, done, count = state
        token = jnp.where(done, 0, draw(logits, step))
        tokens = jax.lax.dynamic_update_slice_in_dim(tokens, token[..., None], step, axis=2)
        count = count + ~done
        done = done | (token == eos_id)
        mask = in_prompt | ((column >= m) & (column <= m + step))
        positions = (p + lengths + step)[..., None]
        x = model.llama.embed(token[..., None], model.dtype)
        hidden, own = model.llama.extend(x, positions, prefix, own, m + step, mask[:, :, None])
        return step + 1, model.llama.logits(hidden[:, :, 0]), own, tokens, done, count

    tokens = jnp.zeros((b, r, max_new_tokens), jnp.int32)
    empty = lengths == 0
    start = (jnp.int32(0), logits, own, tokens, empty, jnp.zeros((b, r), jnp.int32))
    _, _, _, tokens, done, count = jax.lax.while_loop(running, step, start)
    return Generated(tokens, count, done & ~empty)

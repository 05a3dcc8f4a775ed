"""Reading prompts behind the prefix of their video: into slots that go on from there, or for log-probs alone."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from isrdpo_jax.models.kv_cache import KVCache, KVPrefix
from isrdpo_jax.models.llama import Llama
from isrdpo_jax.models.unstacked import build_unstacked
from isrdpo_jax.models.video_llava import Params
from isrdpo_jax.ops.sampling import Style, Uses, record_keys, sample, step_keys
from isrdpo_jax.programs.slots import Slots, lanes_of, stay
from isrdpo_jax.schema import ModelConfig


class Prompts(NamedTuple):
    """Up to a prompts of one video in each of l lanes.

    Attributes:
        at: int32[l], the place of the video in its lane.
        tokens: int32[l, a, n], left-aligned. lengths: int32[l, a]; 0 where there is no prompt.
    """

    at: Any
    tokens: Any
    lengths: Any


class Start(NamedTuple):
    """Where and how each prompt is continued: all [l, a].

    Attributes:
        slot: int32, in the lane; one that the lane does not have is nobody's.
        limit: int32, tokens. purpose, record, sample: uint32, see `record_keys`. style: how tokens are drawn.
    """

    slot: Any
    limit: Any
    purpose: Any
    record: Any
    sample: Any
    style: Style


def read_prompts(llama: Llama, prefixes: KVPrefix, prompts: Prompts) -> tuple[jax.Array, KVCache]:
    """Runs prompts behind their prefix.

    Args:
        prefixes: of all bays.

    Returns:
        float32[l, a, v] logits behind each prompt's last token; the prompts' keys and values [l, a, k, n, c] a layer.
    """
    at, tokens, lengths = prompts
    n = tokens.shape[-1]
    column = jnp.arange(n)
    mask = (column[:, None] >= column[None, :]) & (column < lengths[..., None, None])
    positions = jnp.broadcast_to(prefixes.length + column, tokens.shape)
    x = llama.embed(tokens, llama.head[...].dtype)
    lanes = jax.tree.map(lambda one: lanes_of(one, len(at)), prefixes)
    hidden, own = llama.extend(x, positions, mask, lanes, place=at, last=jnp.maximum(lengths - 1, 0))
    return llama.logits(hidden[:, :, 0]), own


@functools.partial(jax.jit, static_argnames=("config", "eos_id", "uses"), donate_argnames="slots")
def read(
    slots: Slots,
    llama: Params,
    prefixes: KVPrefix,
    prompts: Prompts,
    start: Start,
    base: jax.Array,
    *,
    config: ModelConfig,
    eos_id: int,
    uses: Uses,
) -> Slots:
    """Reads prompts into free slots, and draws the first token of each. What a slot gets depends on nothing else.

    Args:
        llama: unstacked (`models.unstacked`). base: key[], see `record_keys`. uses: what any of the styles needs.
    """
    lanes = prompts.at.shape[0]
    model = build_unstacked(config, llama)
    logits, own = read_prompts(model, prefixes, prompts)
    keys = record_keys(base, start.purpose, start.record, start.sample)
    first = sample(logits, step_keys(keys, jnp.zeros_like(start.slot)), start.style, None, uses)
    place = jnp.broadcast_to((prompts.at % prefixes.places)[:, None], start.slot.shape)

    def put(old: jax.Array, new: jax.Array) -> jax.Array:
        """new [l, a, ...] into slots [b, r, ...]."""
        put_lane = lambda lane, slot, one: lane.at[slot].set(one, mode="drop")  # noqa: E731
        return jax.vmap(put_lane)(lanes_of(old, lanes), start.slot, new).reshape(old.shape)

    def put_columns(old: jax.Array, new: jax.Array) -> jax.Array:
        put_lane = lambda lane, slot, one: lane.at[slot, :, : one.shape[2]].set(one, mode="drop")  # noqa: E731
        return jax.vmap(put_lane)(lanes_of(old, lanes), start.slot, new).reshape(old.shape)

    tokens = jnp.zeros((*first.shape, slots.tokens.shape[-1]), jnp.int32).at[..., 0].set(first)
    after = Slots(
        jax.tree.map(put_columns, slots.own, own),
        place=put(slots.place, place),
        length=put(slots.length, prompts.lengths),
        tokens=put(slots.tokens, tokens),
        count=put(slots.count, jnp.ones_like(first)),
        limit=put(slots.limit, start.limit),
        keys=put(slots.keys, keys),
        style=jax.tree.map(put, slots.style, start.style),
        live=put(slots.live, (first != eos_id) & (start.limit > 1)),
    )
    return stay(after)


@functools.partial(jax.jit, static_argnames="config")
def next_token_logprobs(
    llama: Params, prefixes: KVPrefix, prompts: Prompts, candidates: jax.Array, *, config: ModelConfig
) -> jax.Array:
    """log p(candidate | prefix, prompt) for each candidate token.

    Args:
        llama: unstacked. candidates: int[c].

    Returns:
        float32[l, a, c].
    """
    model = build_unstacked(config, llama)
    logits, _ = read_prompts(model, prefixes, prompts)
    return jax.nn.log_softmax(logits, axis=-1)[..., candidates]

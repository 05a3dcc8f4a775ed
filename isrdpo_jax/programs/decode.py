"""A token for every live slot at a time, until some have ended."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from isrdpo_jax.models.kv_cache import KVPrefix
from isrdpo_jax.models.unstacked import build_unstacked
from isrdpo_jax.models.video_llava import Params
from isrdpo_jax.ops.sampling import Uses, sample, step_keys
from isrdpo_jax.programs.slots import Slots, stay
from isrdpo_jax.schema import ModelConfig


@functools.partial(jax.jit, static_argnames=("config", "eos_id", "uses", "enough", "steps"), donate_argnames="slots")
def decode(
    slots: Slots,
    llama: Params,
    prefixes: KVPrefix,
    *,
    config: ModelConfig,
    eos_id: int,
    uses: Uses,
    enough: int,
    steps: int,
) -> tuple[Slots, jax.Array]:
    """Goes on until `enough` slots have ended in this call, or none is left, or `steps` tokens are said.

    A slot's tokens depend on its own prefix, prompt, key and style only, and not on when a call ends.

    Args:
        llama: unstacked (`models.unstacked`).

    Returns:
        The slots, and int32[2]: steps taken, and tokens that were said in them.
    """
    model = build_unstacked(config, llama)
    began = slots.live.sum()
    column = jnp.arange(slots.own.length)
    row = jnp.arange(slots.tokens.shape[-1])

    State = tuple[jax.Array, jax.Array, Slots]

    def going(state: State) -> jax.Array:
        taken, _, slots = state
        live = slots.live.sum()
        return (taken < steps) & (live > 0) & (began - live < enough)

    def step(state: State) -> State:
        taken, spoken, slots = state
        newest = jnp.take_along_axis(slots.tokens, jnp.maximum(slots.count - 1, 0)[..., None], axis=-1)
        x = model.embed(newest, slots.own.k[0].dtype)
        positions = prefixes.length + slots.length[..., None]
        mask = (column <= slots.length[..., None])[:, :, None]
        sees = slots.place[:, None] == jnp.arange(prefixes.places)[:, None]
        hidden, own = model.extend(x, positions, mask, prefixes, sees=sees, own=slots.own, at=slots.length)
        said = row < slots.count[..., None]
        token = sample(
            model.logits(hidden[:, :, 0]),
            step_keys(slots.keys, slots.count),
            slots.style,
            jnp.where(said, slots.tokens, -1),
            uses,
        )
        live = slots.live
        count = slots.count + live
        tokens = jnp.where((row == slots.count[..., None]) & live[..., None], token[..., None], slots.tokens)
        after = slots._replace(
            own=own,
            length=slots.length + live,
            tokens=tokens,
            count=count,
            live=live & (token != eos_id) & (count < slots.limit),
        )
        return taken + 1, spoken + live.sum(dtype=jnp.int32), stay(after)

    taken, spoken, slots = jax.lax.while_loop(going, step, (jnp.int32(0), jnp.int32(0), slots))
    return slots, jnp.stack([taken, spoken])

"""Decoding slots and the prefixes that they read: what stays on the devices while videos come and go.

Videos are held in *bays*. A bay has places for s videos, a KV prefix each, and r slots, each of which continues any of
them; so a slot whose text ends early serves the bay's other video, and a prefix is read once for all of its slots.
Bays lie in *lanes*, of which the devices have the same number each: one call of a program brings one video, or one
video's prompts, to every lane. Within a lane, places and slots are numbered bay by bay.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental.layout import Format, Layout
from jax.sharding import Mesh

from isrdpo_jax.models.kv_cache import IN_ORDER, OWN_AXES, PREFIX_AXES, KVCache, KVPrefix, key_layout
from isrdpo_jax.ops.int8 import Int8, to_int8
from isrdpo_jax.ops.sampling import Style
from isrdpo_jax.schema import ModelConfig
from isrdpo_jax.sharding import activation_sharding, batch_sharding, constrain


class Slots(NamedTuple):
    """What every slot [b, r] of the b bays says.

    Attributes:
        own: keys and values of its prompt and its tokens, [b, r, k, m, c] a layer.
        place: int32, which of the bay's videos it continues. length: int32, columns of `own` in use.
        tokens: int32[b, r, most], what it has said, EOS included; count: int32, how many. limit: int32, how many it
            may say.
        keys: token j is drawn with fold_in(key, j). style: how it is drawn.
        live: bool, whether it goes on.
    """

    own: KVCache
    place: Any
    length: Any
    tokens: Any
    count: Any
    limit: Any
    keys: Any
    style: Style
    live: Any


def abstract_prefixes(
    config: ModelConfig, mesh: Mesh, bays: int, places: int, length: int, int8: bool = False
) -> KVPrefix:
    """Shapes of the prefixes of all bays, [b, s, k, …] a layer, as they lie on the mesh.

    Args:
        int8: they are rounded to that.
    """
    llama = config.llama

    def layer(head: tuple[int, int], axis: int, layout: Layout) -> Any:
        lying = _lying(config, mesh, (bays, places, llama.num_kv_heads, *head), PREFIX_AXES)
        rounded = jax.eval_shape(functools.partial(to_int8, axis=axis), lying) if int8 else lying

        def lies(x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
            own = IN_ORDER if x.shape[-2] == 1 else layout  # scales are one row
            return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=Format(own, lying.sharding))

        return jax.tree.map(lies, rounded)

    k = layer((llama.head_dim, length), -2, key_layout(mesh))
    v = layer((length, llama.head_dim), -1, IN_ORDER)
    return KVPrefix((k,) * llama.num_layers, (v,) * llama.num_layers)


def abstract_slots(config: ModelConfig, mesh: Mesh, bays: int, slots: int, columns: int, most: int) -> Slots:
    """Shapes of all slots.

    Args:
        columns: of their own that a slot has, m: for its prompt and what it says. most: tokens that it may say.
    """
    here = batch_sharding(mesh)

    def rows(dtype: Any, *more: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((bays, slots, *more), dtype, sharding=here)

    llama = config.llama
    own = _lying(config, mesh, (bays, slots, llama.num_kv_heads, columns, llama.head_dim), OWN_AXES)
    return Slots(
        KVCache((own,) * llama.num_layers, (own,) * llama.num_layers),
        place=rows(jnp.int32),
        length=rows(jnp.int32),
        tokens=rows(jnp.int32, most),
        count=rows(jnp.int32),
        limit=rows(jnp.int32),
        keys=rows(jnp.uint32, 2),
        style=Style(*(rows(jnp.int32 if name == "top_k" else jnp.float32) for name in Style._fields)),
        live=rows(jnp.bool_),
    )


def empty(abstract: Any) -> Any:
    """Zeros of these shapes, made where they lie."""
    zeros = lambda: jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), abstract)  # noqa: E731
    return jax.jit(zeros, out_shardings=formats(abstract))()


def place_prefixes(prefixes: KVPrefix, new: KVPrefix, at: jax.Array) -> KVPrefix:
    """Puts one prefix into each lane.

    Args:
        prefixes: of all bays; donated. new: [l, k, …] a layer, one for each of l lanes; it is rounded if they are.
        at: int[l], the place in the lane; one that the lane does not have puts nothing.
    """
    return placing(formats(prefixes))(prefixes, new, at)


def formats(arrays: Any) -> Any:
    """How each of them lies in memory, or shall lie."""
    return jax.tree.map(lambda x: x.format, arrays)


@functools.cache
def placing(lying: KVPrefix) -> Any:
    """The program of `place_prefixes`, for prefixes that lie in memory like this, and stay so."""
    return jax.jit(_place, donate_argnames="prefixes", out_shardings=lying)


def _place(prefixes: KVPrefix, new: KVPrefix, at: jax.Array) -> KVPrefix:
    def put(old: jax.Array, one: jax.Array) -> jax.Array:
        lanes = lanes_of(old, at.shape[0])
        put_one = lambda lane, place, prefix: lane.at[place].set(prefix, mode="drop")  # noqa: E731
        return jax.vmap(put_one)(lanes, at, one.astype(old.dtype)).reshape(old.shape)

    if isinstance(prefixes.k[0], Int8):
        rounding = functools.partial(to_int8, axis=-2), functools.partial(to_int8, axis=-1)
        new = KVPrefix(*map(jax.tree.map, rounding, new))
    return jax.tree.map(put, prefixes, new)


@functools.partial(jax.jit, donate_argnames="slots")
def halt(slots: Slots, ended: jax.Array) -> Slots:
    """Ends the texts of some slots, bool[b, r]."""
    return slots._replace(live=slots.live & ~ended)


def lanes_of(x: jax.Array, lanes: int) -> jax.Array:
    """[b, s, ...] or [b, r, ...] -> [lanes, places or slots of a lane, ...]."""
    return x.reshape(lanes, -1, *x.shape[2:])


def stay(slots: Slots) -> Slots:
    """The slots, laid out as `abstract_slots` has them: a program's result lies where its argument lay."""
    where = jax.tree.map(lambda x: ("batch", ...), slots)._replace(own=jax.tree.map(lambda x: OWN_AXES, slots.own))
    return jax.tree.map(lambda x, axes: constrain(x, axes, slots.own.k[0]), slots, where)


def _lying(config: ModelConfig, mesh: Mesh, shape: tuple[int, ...], axes: tuple) -> Any:
    """A layer's keys or values, as they lie on the mesh."""
    sharding = activation_sharding(mesh, axes, shape)
    return jax.ShapeDtypeStruct(shape, jnp.dtype(config.compute_dtype), sharding=sharding)

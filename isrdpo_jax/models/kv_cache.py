"""Keys and values of prefixes, and of what extends them; every layer has arrays of its own.

A layer's array of several is a slice that the compiler copies before it reads it, at every token.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental.layout import Layout, with_layout_constraint
from jax.sharding import Mesh

from isrdpo_jax.ops.int8 import Int8
from isrdpo_jax.sharding import on_shards

PREFIX_AXES = ("batch", None, "kv_heads", None, None)
OWN_AXES = ("batch", None, "kv_heads", None, None)
IN_ORDER = Layout((0, 1, 2, 3, 4))
"""Of caches in memory: as products read them. Left to choose, compilers for TPUs put heads behind positions, to pad
less or to write a column at once; programs then copy the caches that they are given."""


def key_layout(mesh: Mesh) -> Layout:
    """Of prefixes' keys in memory. TPUs want the size of a head last, and would copy all keys to have it so."""
    on_tpu = mesh.devices.flat[0].platform == "tpu"
    return Layout((0, 1, 2, 4, 3)) if on_tpu else IN_ORDER


class KVPrefix(NamedTuple):
    """Of prefixes: k [b, k, c, p] and v [b, k, p, c] a layer, or [b, s, k, …] where s of them lie side by side.

    Keys are rotated. A prefix is written once and read at every token, and both lie as a CPU multiplies few queries
    with them fastest, along whole rows of what comes out (`key_layout` for other devices).
    """

    k: tuple[jax.Array | Int8, ...]
    v: tuple[jax.Array | Int8, ...]

    @property
    def length(self) -> int:
        """How many positions there are, p."""
        return jax.tree.leaves(self.k)[0].shape[-1]

    @property
    def places(self) -> int:
        """How many lie side by side, s."""
        return jax.tree.leaves(self.k)[0].shape[1]


class KVCache(NamedTuple):
    """Of extensions: k, v are an array per layer, [b, r, k, m, c]. Keys are rotated; a new position is one row."""

    k: tuple[jax.Array, ...]
    v: tuple[jax.Array, ...]

    @property
    def length(self) -> int:
        """How many positions there are, m."""
        return self.k[0].shape[-2]


def at_place(prefix: Any, place: jax.Array) -> Any:
    """One of the prefixes beside each row: arrays [b, s, …] -> [b, 1, …].

    Args:
        place: int[b].
    """
    take = jax.vmap(lambda row, at: jax.lax.dynamic_slice_in_dim(row, at, 1))
    return jax.tree.map(lambda x: take(x, place), prefix)


def write_columns(old: jax.Array, new: jax.Array, at: jax.Array, like: jax.Array) -> jax.Array:
    """New columns [b, r, k, n, c] of each extension in its own [b, r, k, m, c], from column int[b, r] on.

    On TPUs every device writes into its few extensions one after another, in place: of all in one scatter, the compiler
    makes a loop there that carries the whole cache through fast memory and back.

    Args:
        like: a parameter, whose mesh the arrays lie on.
    """
    write = functools.partial(jax.lax.platform_dependent, tpu=one_by_one, default=at_once)
    return on_shards(write, (OWN_AXES, OWN_AXES, ("batch", None)), like)(old, new, at)


def at_once(old: jax.Array, new: jax.Array, at: jax.Array) -> jax.Array:
    """`write_columns` on one device, as one scatter."""
    one = functools.partial(jax.lax.dynamic_update_slice_in_dim, axis=1)
    return jax.vmap(jax.vmap(one))(old, new, at)


def one_by_one(old: jax.Array, new: jax.Array, at: jax.Array) -> jax.Array:
    """`write_columns` on one device, as a write for each extension."""
    for i, j in np.ndindex(*at.shape):
        old = jax.lax.dynamic_update_slice(old, new[i : i + 1, j : j + 1], (i, j, 0, at[i, j], 0))
    return with_layout_constraint(old, IN_ORDER)

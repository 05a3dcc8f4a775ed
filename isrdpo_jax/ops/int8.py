"""Keys and values rounded to 8 bits, a scale for each head and position."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Int8(NamedTuple):
    """Keys or values of a layer in half the bytes of bfloat16: values * scale.

    Attributes:
        values: int8[..., c, p] or [..., p, c]. scale: float32[..., 1, p], one for each head and position.
    """

    values: jax.Array
    scale: jax.Array


def to_int8(x: jax.Array, axis: int) -> Int8:
    """Rounds to 255 steps between the largest absolute value of each head and position and its negative.

    Args:
        axis: c of x, which is [..., c, p] with -2 or [..., p, c] with -1.
    """
    x = x.astype(jnp.float32)
    scale = jnp.abs(x).max(axis, keepdims=True) / 127
    values = jnp.round(x / jnp.where(scale > 0, scale, 1)).astype(jnp.int8)
    return Int8(values, scale.reshape(*x.shape[:-2], 1, -1))


def from_int8(x: jax.Array | Int8, axis: int, dtype: jnp.dtype) -> jax.Array:
    """As `to_int8` was given it, in `dtype`, of what was rounded or was not."""
    if not isinstance(x, Int8):
        return x
    return (x.values * (x.scale if axis == -2 else x.scale.swapaxes(-1, -2))).astype(dtype)


def unscaled(x: jax.Array | Int8, dtype: jnp.dtype) -> tuple[jax.Array, jax.Array | None]:
    """The values in `dtype`, exact, and float32[..., 1, p] that is still to be multiplied with what comes of them.

    A product with 8-bit values needs no rescaled copy of them: the scale is the same along c.
    """
    return (x.values.astype(dtype), x.scale) if isinstance(x, Int8) else (x, None)

"""Keys and values rounded to 8 bits, a scale for each head and position."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Int8(NamedTuple):
    """Keys or values of a layer in half the bytes of bfloat16: values * scale.

    Attributes:
        values: int8[..., c, p]. scale: float32[..., 1, p], one for each head and position.
    """

    values: jax.Array
    scale: jax.Array


def to_int8(x: jax.Array) -> Int8:
    """Rounds [..., c, p] to 255 steps between the largest absolute value of each head and position and its negative."""
    x = x.astype(jnp.float32)
    scale = jnp.abs(x).max(-2, keepdims=True) / 127
    values = jnp.round(x / jnp.where(scale > 0, scale, 1)).astype(jnp.int8)
    return Int8(values, scale)


def from_int8(x: jax.Array | Int8, dtype: jnp.dtype) -> jax.Array:
    """[..., c, p] in `dtype`, of what was rounded or was not."""
    return (x.values * x.scale).astype(dtype) if isinstance(x, Int8) else x


def unscaled(x: jax.Array | Int8, dtype: jnp.dtype) -> tuple[jax.Array, jax.Array | None]:
    """[..., c, p] in `dtype`, exact, and float32[..., 1, p] that is still to be multiplied with what comes of it.

    A product with 8-bit values needs no rescaled copy of them: the scale is the same along c.
    """
    return (x.values.astype(dtype), x.scale) if isinstance(x, Int8) else (x, None)

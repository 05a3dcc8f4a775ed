"""Video frames and images to tower features."""

from __future__ import annotations

import functools

import jax

from isrdpo_jax.models.video_llava import Params, build
from isrdpo_jax.schema import ModelConfig


@functools.partial(jax.jit, static_argnames="config")
def encode(params: Params, pixels: jax.Array, *, config: ModelConfig) -> jax.Array:
    """Normalised pixels [b, t, S, S, 3] -> pre-projector features [b, n, d_vision] in the compute dtype."""
    return build(config, params).encode(pixels)


@functools.partial(jax.jit, static_argnames="config")
def encode_images(params: Params, pixels: jax.Array, *, config: ModelConfig) -> jax.Array:
    """Normalised pixels [b, S, S, 3] -> pre-projector features [b, n, d_vision] of the image tower, as `encode`.

    Raises:
        ValueError: when the model has no image tower.
    """
    return build(config, params).encode_images(pixels)

"""The decoder's parameters laid out for decoding, once for each policy."""

from __future__ import annotations

import functools

import jax

from isrdpo_jax.models.unstacked import logical_axes, unstack
from isrdpo_jax.models.video_llava import Params
from isrdpo_jax.schema import ModelConfig
from isrdpo_jax.sharding import constrain


@functools.partial(jax.jit, static_argnames="config")
def unstacked_decoder(llama: Params, *, config: ModelConfig) -> Params:
    """A copy of the decoder's parameters as `models.unstacked` wants them, split over the mesh as they are."""
    like = llama["head"]
    return jax.tree.map(lambda x, axes: constrain(x, axes, like), unstack(llama, config), logical_axes(config))

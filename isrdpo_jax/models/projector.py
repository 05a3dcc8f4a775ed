"""From tower features to the decoder's embedding space: Linear, exact GELU, Linear (`mlp2x_gelu`)."""

from __future__ import annotations

import jax
from flax import nnx

from isrdpo_jax.models.layers import Linear, activation


class Projector(nnx.Module):
    """[b, n, d_vision] -> [b, n, d]."""

    def __init__(self, d_vision: int, d: int, *, rngs: nnx.Rngs):
        self.linear1 = Linear(d_vision, d, (None, "embed"), rngs=rngs)
        self.linear2 = Linear(d, d, (None, "embed"), rngs=rngs)

    def __call__(self, features: jax.Array) -> jax.Array:
        return self.linear2(activation("gelu")(self.linear1(features)))

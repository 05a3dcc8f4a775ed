"""Keys and values of a prefix, or of the extensions' own positions."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp


class KVCache(NamedTuple):
    """k, v: [layers, b, p, k, c] for a prefix, [layers, b, r, m, k, c] for r extensions of each; keys rotated."""

    k: jax.Array
    v: jax.Array

    @property
    def length(self) -> int:
        """How many positions there are: p, or m (axis -3)."""
        return self.k.shape[-3]

    def grown(self, columns: int) -> KVCache:
        """The same with `columns` empty positions appended (axis -3)."""
        widths = [(0, 0)] * self.k.ndim
        widths[-3] = (0, columns)
        return KVCache(jnp.pad(self.k, widths), jnp.pad(self.v, widths))

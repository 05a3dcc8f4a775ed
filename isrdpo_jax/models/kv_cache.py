"""Keys and values of prefixes, and of what extends them; every layer has arrays of its own.

A layer's array of several is a slice that the compiler copies before it reads it, at every token.
"""

from __future__ import annotations

from typing import NamedTuple

import jax


class KVCache(NamedTuple):
    """k, v: an array per layer, keys rotated, heads before positions, which a product over positions reads in a row.

    Prefixes: [b, k, p, c], or [b, s, k, p, c] where s of them lie side by side. Extensions: [b, r, k, m, c].
    """

    k: tuple[jax.Array, ...]
    v: tuple[jax.Array, ...]

    @property
    def length(self) -> int:
        """How many positions there are: p, or m."""
        return self.k[0].shape[-2]

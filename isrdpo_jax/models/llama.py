"""The LLaMA decoder: RMSNorm, rotate-half RoPE, SwiGLU, grouped queries, no biases; layers stacked under one scan.

Three ways through the same layers: packed rows (training and scoring), the prefix alone (prefill), and extensions
that read a prefix cache and write their own (prompts behind the video, and decoding).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from isrdpo_jax.models.attention import attention_behind, packed_attention
from isrdpo_jax.models.kv_cache import KVCache, KVPrefix, write_columns
from isrdpo_jax.models.layers import Linear, RmsNorm, normal, scan_but_last, scan_layers
from isrdpo_jax.ops.attention import PREFIX
from isrdpo_jax.ops.product import product
from isrdpo_jax.schema import AttentionKind, LlamaConfig, LoraConfig, Remat
from isrdpo_jax.sharding import constrain


def rope_tables(positions: jax.Array, head_dim: int, theta: float) -> tuple[jax.Array, jax.Array]:
    """cos and sin of the rotary angles (arXiv 2104.09864): float32[..., n, 1, c/2] for int positions [..., n]."""
    frequencies = theta ** (-jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
    angles = positions[..., None].astype(jnp.float32) * frequencies
    tables = jnp.cos(angles)[..., None, :], jnp.sin(angles)[..., None, :]
    return jax.lax.optimization_barrier(tables)  # else they are computed again for every head of every layer


def rotate(x: jax.Array, rope: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Rotate the halves of each head: x [..., n, h, c]."""
    cos, sin = rope
    left, right = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([left * cos - right * sin, right * cos + left * sin], axis=-1).astype(x.dtype)


class LlamaLayer(nnx.Module):
    def __init__(self, config: LlamaConfig, *, lora: LoraConfig | None = None, rngs: nnx.Rngs):
        d, c = config.hidden_size, config.head_dim
        q_size, kv_size = config.num_heads * c, config.num_kv_heads * c
        out_scale = (2 * config.num_layers) ** -0.5  # keeps the residual stream's size at initialisation (GPT-2)
        self.head_dim = c
        self.norm1, self.norm2 = RmsNorm(d, config.rms_norm_eps), RmsNorm(d, config.rms_norm_eps)

        def linear(name: str, i: int, o: int, axes: tuple[str, str], scale: float = 1.0) -> Linear:
            adapter = lora if lora is not None and name in lora.targets else None
            return Linear(i, o, axes, rngs=rngs, bias=False, scale=scale, lora=adapter)

        self.q = linear("q", d, q_size, ("embed", "heads"))
        self.k = linear("k", d, kv_size, ("embed", "kv_heads"))
        self.v = linear("v", d, kv_size, ("embed", "kv_heads"))
        self.out = linear("out", q_size, d, ("heads", "embed"), out_scale)
        self.gate = linear("gate", d, config.intermediate_size, ("embed", "mlp"))
        self.up = linear("up", d, config.intermediate_size, ("embed", "mlp"))
        self.down = linear("down", config.intermediate_size, d, ("mlp", "embed"), out_scale)

    def __call__(
        self,
        x: jax.Array,
        rope: tuple[jax.Array, jax.Array],
        attention: Callable,
        wanted: Callable[[jax.Array], jax.Array] | None = None,
    ) -> tuple[jax.Array, tuple]:
        """x: [..., n, d] -> [..., n, d].

        Args:
            attention: `attention(q, k, v) -> (out, extra)` decides who sees whom; `extra` is handed on.
            wanted: takes from [..., n, ·] the positions whose result is wanted; the others are keys and values only.
        """
        y = self.norm1(x)
        k, v = rotate(self._heads(self.k, y), rope), self._heads(self.v, y)
        if wanted is not None:
            x, y, cos, sin = map(wanted, (x, y, *(table[..., 0, :] for table in rope)))
            rope = cos[..., None, :], sin[..., None, :]
        out, extra = attention(rotate(self._heads(self.q, y), rope), k, v)
        x = x + self.out(out.reshape(*x.shape[:-1], -1))
        y = self.norm2(x)
        return x + self.down(jax.nn.silu(self.gate(y)) * self.up(y)), extra

    def keys_and_values(self, x: jax.Array, rope: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        """Those that `attention` would get: [..., n, k, c]."""
        y = self.norm1(x)
        return rotate(self._heads(self.k, y), rope), self._heads(self.v, y)

    def _heads(self, linear: Linear, x: jax.Array) -> jax.Array:
        """[b, ..., d] -> [b, ..., h, c]; no head is split."""
        heads = linear(x).reshape(*x.shape[:-1], -1, self.head_dim)
        return constrain(heads, ("batch", ..., "heads", None), linear.kernel[...])


class Llama(nnx.Module):
    def __init__(
        self,
        config: LlamaConfig,
        *,
        lora: LoraConfig | None = None,
        attention: AttentionKind = "auto",
        unroll: bool = False,
        remat: Remat = "none",
        stacked: bool = True,
        rngs: nnx.Rngs,
    ):
        """stacked: all layers' parameters in one array each; or every layer by itself, as `extend` wants them."""
        d, v = config.hidden_size, config.vocab_size
        self.config, self.attention, self.unroll, self.remat = config, attention, unroll, remat
        self.embedding = normal(rngs, (v, d), 0.02, ("vocab", "embed"))
        make = lambda r: LlamaLayer(config, lora=lora, rngs=r)  # noqa: E731
        self.layers: Any = (
            nnx.vmap(make)(rngs.split(config.num_layers))
            if stacked
            else nnx.List([make(rngs) for _ in range(config.num_layers)])
        )
        self.norm = RmsNorm(d, config.rms_norm_eps)
        self.head = normal(rngs, (d, v), d**-0.5, ("embed", "vocab"))

    def embed(self, ids: jax.Array, dtype: jnp.dtype) -> jax.Array:
        """int[...] -> [..., d]."""
        return self.embedding[...][ids].astype(dtype)  # so that the gradients of a token's places add up in float32

    def logits(self, hidden: jax.Array) -> jax.Array:
        """[b, ..., d] -> float32[b, ..., v]."""
        logits = product(hidden, self.head[...].astype(hidden.dtype), jnp.dtype(jnp.float32))
        return constrain(logits, ("batch", ..., "vocab"), self.head[...])

    def _layers(self, body: Callable, x: jax.Array, positions: jax.Array, xs=None):
        rope = rope_tables(positions, self.config.head_dim, self.config.rope_theta)
        x, ys = scan_layers(
            self.layers,
            lambda layer, x, inputs: body(layer, x, rope, inputs),
            x,
            xs,
            unroll=self.unroll,
            remat=self.remat,
        )
        return self.norm(x), ys

    def __call__(
        self, x: jax.Array, positions: jax.Array, segments: jax.Array, sections: Sequence[int] | None = None
    ) -> jax.Array:
        """Packed rows x [b, n, d] -> hidden states [b, n, d].

        Args:
            positions: int[b, n]. segments: int[b, n], who sees whom (`ops.attention.packed_mask`).
            sections: columns of the prefix and of each segment, where they are the same in every row.
        """
        attend = packed_attention(self.attention, segments, sections, self.head[...])
        body = lambda layer, x, rope, _: layer(x, rope, lambda q, k, v: (attend(q, k, v), None))  # noqa: E731
        return self._layers(body, x, positions)[0]

    def prefill(self, x: jax.Array) -> KVPrefix:
        """The cache of a prefix x [b, p, d] at positions 0 … p-1, attended causally."""
        b, p = x.shape[:2]
        positions = jnp.broadcast_to(jnp.arange(p), (b, p))
        attend = packed_attention(self.attention, jnp.full((b, p), PREFIX), (p,), self.head[...])
        rope = rope_tables(positions, self.config.head_dim, self.config.rope_theta)
        body = lambda layer, x: layer(x, rope, lambda q, k, v: (attend(q, k, v), (k, v)))  # noqa: E731
        x, (k, v), last = scan_but_last(self.layers, body, x, unroll=self.unroll)
        last_k, last_v = last.keys_and_values(x, rope)  # nobody reads what that layer says
        k, v = ((*kind, last) for kind, last in ((k, last_k), (v, last_v)))
        return KVPrefix(tuple(one.transpose(0, 2, 3, 1) for one in k), tuple(one.swapaxes(1, 2) for one in v))

    def extend(
        self,
        x: jax.Array,
        positions: jax.Array,
        mask: jax.Array,
        prefix: KVPrefix,
        *,
        sees: jax.Array | None = None,
        place: jax.Array | None = None,
        own: KVCache | None = None,
        at: jax.Array | None = None,
        last: jax.Array | None = None,
    ) -> tuple[jax.Array, KVCache]:
        """n further positions of r extensions, each of one of the s prefixes that lie beside it.

        Args:
            x: [b, r, n, d]. positions: int[b, r, n].
            mask: bool[b, r, n, m], which of its extension's own columns each position sees.
            prefix: s of them beside each b, as they are or rounded.
            sees: bool[b, s, r]; or place: int[b], where all r extensions continue the same one.
            own: [b, r, k, m, c] a layer, into which the new positions are written from column at[b, r] on; without
                it, the new positions are all that the extensions have.
            last: int[b, r], the one new position of each whose hidden state is wanted; without it, all are.

        Returns:
            Hidden states [b, r, n, d], or [b, r, 1, d]; the extensions' own keys and values [b, r, k, m, c] a layer.
        """
        layers = len(prefix.k)
        attend = attention_behind(self.attention, self.head[...])
        earlier = [None] * layers if own is None else list(zip(own.k, own.v, strict=True))

        def only(rows: jax.Array) -> jax.Array:
            """[b, r, n, ·] -> [b, r, 1, ·]."""
            assert last is not None
            return jnp.take_along_axis(rows, last[..., None, None], axis=2)

        # Of the last layer nobody reads what it says at the other positions.
        wanted = [None] * layers if last is None else [None] * (layers - 1) + [only]

        def body(layer, x, rope, caches):
            (prefix_k, prefix_v), past, only = caches

            def attention(q, k, v):
                k, v = k.swapaxes(2, 3), v.swapaxes(2, 3)
                if past is not None and at is not None:
                    # Written before they are read: the compiler then needs no copy of the whole.
                    k, v = (write_columns(old, new, at, self.head[...]) for old, new in zip(past, (k, v), strict=True))
                seen = mask if only is None else only(mask)
                return attend(q, k, v, seen, prefix_k, prefix_v, sees, place), (k, v)

            return layer(x, rope, attention, only)

        xs = list(zip(zip(prefix.k, prefix.v, strict=True), earlier, wanted, strict=True))
        hidden, kv = self._layers(body, x, positions, xs)
        return hidden, KVCache(*(tuple(kind) for kind in zip(*kv, strict=True)))

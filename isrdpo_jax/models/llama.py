"""The LLaMA decoder: RMSNorm, rotate-half RoPE, SwiGLU, grouped queries, no biases; layers stacked under one scan.

Three ways through the same layers: packed rows (training and scoring), the prefix alone (prefill), and extensions
that read a prefix cache and write their own (prompts behind the video, and decoding).
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from isrdpo_jax.models.kv_cache import KVCache
from isrdpo_jax.models.layers import Linear, RmsNorm, normal, scan_layers
from isrdpo_jax.ops.attention import attend, attend_prefix
from isrdpo_jax.schema import LlamaConfig


def rope_tables(positions: jax.Array, head_dim: int, theta: float) -> tuple[jax.Array, jax.Array]:
    """cos and sin of the rotary angles (arXiv 2104.09864): float32[..., n, 1, c/2] for int positions [..., n]."""
    frequencies = theta ** (-jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
    angles = positions[..., None].astype(jnp.float32) * frequencies
    return jnp.cos(angles)[..., None, :], jnp.sin(angles)[..., None, :]


def rotate(x: jax.Array, rope: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Rotate the halves of each head: x [..., n, h, c]."""
    cos, sin = rope
    left, right = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([left * cos - right * sin, right * cos + left * sin], axis=-1).astype(x.dtype)


class LlamaLayer(nnx.Module):
    def __init__(self, config: LlamaConfig, *, rngs: nnx.Rngs):
        d, c = config.hidden_size, config.head_dim
        q_size, kv_size = config.num_heads * c, config.num_kv_heads * c
        out_scale = (2 * config.num_layers) ** -0.5  # keeps the residual stream's size at initialisation (GPT-2)
        self.head_dim = c
        self.norm1, self.norm2 = RmsNorm(d, config.rms_norm_eps), RmsNorm(d, config.rms_norm_eps)
        self.q = Linear(d, q_size, ("embed", "heads"), rngs=rngs, bias=False)
        self.k = Linear(d, kv_size, ("embed", "kv_heads"), rngs=rngs, bias=False)
        self.v = Linear(d, kv_size, ("embed", "kv_heads"), rngs=rngs, bias=False)
        self.out = Linear(q_size, d, ("heads", "embed"), rngs=rngs, bias=False, scale=out_scale)
        self.gate = Linear(d, config.intermediate_size, ("embed", "mlp"), rngs=rngs, bias=False)
        self.up = Linear(d, config.intermediate_size, ("embed", "mlp"), rngs=rngs, bias=False)
        self.down = Linear(config.intermediate_size, d, ("mlp", "embed"), rngs=rngs, bias=False, scale=out_scale)

    def __call__(self, x: jax.Array, rope: tuple[jax.Array, jax.Array], attention: Callable) -> tuple[jax.Array, tuple]:
        """x: [..., n, d]. `attention(q, k, v) -> (out, extra)` decides who sees whom; `extra` is handed on."""
        y = self.norm1(x)
        heads = (*x.shape[:-1], -1, self.head_dim)
        q, k = rotate(self.q(y).reshape(heads), rope), rotate(self.k(y).reshape(heads), rope)
        out, extra = attention(q, k, self.v(y).reshape(heads))
        x = x + self.out(out.reshape(*x.shape[:-1], -1))
        y = self.norm2(x)
        return x + self.down(jax.nn.silu(self.gate(y)) * self.up(y)), extra


class Llama(nnx.Module):
    def __init__(self, config: LlamaConfig, *, unroll: bool = False, remat: bool = False, rngs: nnx.Rngs):
        d, v = config.hidden_size, config.vocab_size
        self.config, self.unroll, self.remat = config, unroll, remat
        self.embedding = normal(rngs, (v, d), 0.02, ("vocab", "embed"))
        self.layers = nnx.vmap(lambda r: LlamaLayer(config, rngs=r))(rngs.split(config.num_layers))
        self.norm = RmsNorm(d, config.rms_norm_eps)
        self.head = normal(rngs, (d, v), d**-0.5, ("embed", "vocab"))

    def embed(self, ids: jax.Array, dtype: jnp.dtype) -> jax.Array:
        """int[...] -> [..., d]."""
        return self.embedding[...].astype(dtype)[ids]

    def logits(self, hidden: jax.Array) -> jax.Array:
        """[..., d] -> float32[..., v]."""
        return jnp.matmul(hidden, self.head[...].astype(hidden.dtype), preferred_element_type=jnp.float32)

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

    def __call__(self, x: jax.Array, positions: jax.Array, mask: jax.Array) -> jax.Array:
        """Packed rows: x [b, n, d], positions int[b, n], mask bool[b, n, n] -> hidden states [b, n, d]."""
        body = lambda layer, x, rope, _: layer(x, rope, lambda q, k, v: (attend(q, k, v, mask), None))  # noqa: E731
        return self._layers(body, x, positions)[0]

    def prefill(self, x: jax.Array) -> KVCache:
        """The cache of a prefix x [b, p, d] at positions 0 … p-1, attended causally."""
        b, p = x.shape[:2]
        positions = jnp.broadcast_to(jnp.arange(p), (b, p))
        causal = jnp.broadcast_to(jnp.tril(jnp.ones((p, p), bool)), (b, p, p))
        body = lambda layer, x, rope, _: layer(x, rope, lambda q, k, v: (attend(q, k, v, causal), (k, v)))  # noqa: E731
        return KVCache(*self._layers(body, x, positions)[1])

    def extend(
        self, x: jax.Array, positions: jax.Array, prefix: KVCache, own: KVCache, at: jax.Array, mask: jax.Array
    ) -> tuple[jax.Array, KVCache]:
        """n further positions of r extensions of each prefix.

        Args:
            x: [b, r, n, d]. positions: int[b, r, n].
            prefix: the shared cache. own: the extensions' cache, m columns, written from column `at` on.
            mask: bool[b, r, n, m] over the own columns (the new ones included).

        Returns:
            Hidden states [b, r, n, d] and the extensions' cache.
        """

        def body(layer, x, rope, caches):
            prefix_k, prefix_v, own_k, own_v = caches

            def attention(q, k, v):
                k = jax.lax.dynamic_update_slice_in_dim(own_k, k, at, axis=2)
                v = jax.lax.dynamic_update_slice_in_dim(own_v, v, at, axis=2)
                return attend_prefix(q, prefix_k, prefix_v, k, v, mask), (k, v)

            return layer(x, rope, attention)

        hidden, own_kv = self._layers(body, x, positions, (prefix.k, prefix.v, own.k, own.v))
        return hidden, KVCache(*own_kv)

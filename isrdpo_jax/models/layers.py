"""The small parts that towers and decoder share. Parameters carry their logical axes as metadata."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx


def normal(rngs: nnx.Rngs, shape: tuple[int, ...], std: float, axes: tuple[str | None, ...]) -> nnx.Param:
    return nnx.Param(std * jax.random.normal(rngs.params(), shape, jnp.float32), axes=axes)


def constant(value: float, shape: tuple[int, ...], axes: tuple[str | None, ...]) -> nnx.Param:
    return nnx.Param(jnp.full(shape, value, jnp.float32), axes=axes)


class Linear(nnx.Module):
    """x [..., i] -> [..., o]; the kernel [i, o] is cast to the dtype of x."""

    def __init__(
        self,
        i: int,
        o: int,
        axes: tuple[str | None, str | None],
        *,
        rngs: nnx.Rngs,
        bias: bool = True,
        scale: float = 1.0,
    ):
        self.kernel = normal(rngs, (i, o), scale * i**-0.5, axes)
        self.bias = constant(0.0, (o,), axes[1:]) if bias else None

    def __call__(self, x: jax.Array) -> jax.Array:
        y = x @ self.kernel[...].astype(x.dtype)
        return y if self.bias is None else y + self.bias[...].astype(x.dtype)


class LayerNorm(nnx.Module):
    """Layer normalisation with scale and bias, in float32."""

    def __init__(self, d: int, eps: float):
        self.scale, self.bias, self.eps = constant(1.0, (d,), (None,)), constant(0.0, (d,), (None,)), eps

    def __call__(self, x: jax.Array) -> jax.Array:
        x32 = x.astype(jnp.float32)
        centred = x32 - x32.mean(-1, keepdims=True)
        y = centred * jax.lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + self.eps)
        return (y * self.scale[...] + self.bias[...]).astype(x.dtype)


class RmsNorm(nnx.Module):
    """Root-mean-square normalisation with scale, in float32."""

    def __init__(self, d: int, eps: float):
        self.scale, self.eps = constant(1.0, (d,), (None,)), eps

    def __call__(self, x: jax.Array) -> jax.Array:
        x32 = x.astype(jnp.float32)
        y = x32 * jax.lax.rsqrt(jnp.square(x32).mean(-1, keepdims=True) + self.eps)
        return (y * self.scale[...]).astype(x.dtype)


def activation(name: str) -> Callable[[jax.Array], jax.Array]:
    """`gelu` is the exact (erf) form; `quick_gelu` is x σ(1.702 x)."""
    return {"gelu": lambda x: jax.nn.gelu(x, approximate=False), "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x)}[
        name
    ]


def scan_layers(layers: nnx.Module, body: Callable, carry, xs=None, *, unroll: bool, remat: bool):
    """`lax.scan` of `body(layer, carry, x) -> (carry, y)` over layers stacked on axis 0 of their parameters."""
    layer_def, stacked = nnx.split(layers)

    def step(carry, inputs):
        params, x = inputs
        return body(nnx.merge(layer_def, params), carry, x)

    return jax.lax.scan(jax.checkpoint(step) if remat else step, carry, (stacked, xs), unroll=unroll)

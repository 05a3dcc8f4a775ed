"""The small parts that towers and decoder share. Parameters carry their logical axes as metadata."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from isrdpo_jax.ops.cpu_attention import RESIDUALS
from isrdpo_jax.ops.product import product
from isrdpo_jax.ops.rms_norm import rms_norm
from isrdpo_jax.schema import LoraConfig, Remat
from isrdpo_jax.sharding import constrain


def normal(rngs: nnx.Rngs, shape: tuple[int, ...], std: float, axes: tuple[str | None, ...]) -> nnx.Param:
    return nnx.Param(std * jax.random.normal(rngs.params(), shape, jnp.float32), axes=axes)


def constant(value: float, shape: tuple[int, ...], axes: tuple[str | None, ...]) -> nnx.Param:
    return nnx.Param(jnp.full(shape, value, jnp.float32), axes=axes)


class Linear(nnx.Module):
    """x [..., i] -> [..., o]; the kernel [i, o] is cast to the dtype of x.

    With `lora`, a low-rank product stands beside the kernel (see `models.lora`).
    """

    def __init__(
        self,
        i: int,
        o: int,
        axes: tuple[str | None, str | None],
        *,
        rngs: nnx.Rngs,
        bias: bool = True,
        scale: float = 1.0,
        lora: LoraConfig | None = None,
    ):
        self.kernel = normal(rngs, (i, o), scale * i**-0.5, axes)
        self.bias = constant(0.0, (o,), axes[1:]) if bias else None
        self.lora = lora
        self.lora_a = normal(rngs, (i, lora.rank), i**-0.5, (axes[0], None)) if lora else None
        self.lora_b = constant(0.0, (lora.rank, o), (None, axes[1])) if lora else None

    def __call__(self, x: jax.Array) -> jax.Array:
        y = product(x, self.kernel[...].astype(x.dtype), x.dtype)
        if self.lora is not None and self.lora_a is not None and self.lora_b is not None:
            y = y + self.lora.scale * (x @ self.lora_a[...].astype(x.dtype) @ self.lora_b[...].astype(x.dtype))
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
        return rms_norm(x.astype(jnp.float32), self.scale[...], self.eps).astype(x.dtype)


def activation(name: str) -> Callable[[jax.Array], jax.Array]:
    """`gelu` is the exact (erf) form; `quick_gelu` is x σ(1.702 x)."""
    return {"gelu": lambda x: jax.nn.gelu(x, approximate=False), "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x)}[
        name
    ]


def scan_layers(layers: nnx.Module, body: Callable, carry: jax.Array, xs=None, *, unroll: bool, remat: Remat):
    """`lax.scan` of `body(layer, carry, x) -> (carry, y)` over layers stacked on axis 0 of their parameters.

    Over an `nnx.List` of layers it is a plain loop; xs and what is returned of y are then lists with an item a layer.

    Args:
        carry: [b, ..., d]. It stays split along b, and when there are few positions along d, so that of parameters and
            activations the smaller travel between devices.
        remat: what the backward pass finds: everything (`none`), the results of matrix products with parameters
            (`dots`), or the carry alone (`full`); it computes the rest again.
    """
    layer_def, stacked = nnx.split(layers)
    parameter = jax.tree.leaves(stacked)[0]
    axes = _axes(carry)
    carry = constrain(carry, axes, parameter)
    if isinstance(layers, nnx.List):
        ys = []
        for layer, x in zip(layers, xs, strict=True):
            carry, y = body(layer, carry, x)
            carry = constrain(carry, axes, parameter)
            ys.append(y)
        return carry, ys

    def step(carry, inputs):
        params, x = inputs
        carry, y = body(nnx.merge(layer_def, params), carry, x)
        return constrain(carry, axes, parameter), y

    if remat != "none":
        policies = jax.checkpoint_policies
        products = policies.save_from_both_policies(
            policies.dots_with_no_batch_dims_saveable, policies.save_only_these_names(RESIDUALS)
        )
        policy = products if remat == "dots" else None
        step = jax.checkpoint(step, policy=policy)
    return jax.lax.scan(step, carry, (stacked, xs), unroll=unroll)


def scan_but_last(layers: nnx.Module, body: Callable, carry: jax.Array, *, unroll: bool):
    """The forward pass of `body(layer, carry) -> (carry, y)` over all stacked layers but the last.

    Returns:
        carry, the ys stacked, and the last layer.
    """
    layer_def, stacked = nnx.split(layers)
    parameter = jax.tree.leaves(stacked)[0]
    axes = _axes(carry)

    def step(carry, i):
        params = jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, i, keepdims=False), stacked)
        carry, y = body(nnx.merge(layer_def, params), carry)
        return constrain(carry, axes, parameter), y

    others = jnp.arange(parameter.shape[0] - 1)
    carry, ys = jax.lax.scan(step, constrain(carry, axes, parameter), others, unroll=unroll)
    return carry, ys, nnx.merge(layer_def, jax.tree.map(lambda x: x[-1], stacked))


def _axes(carry: jax.Array) -> tuple:
    """How activations between layers [b, ..., d] are split."""
    decoding = carry.size < carry.shape[-1] ** 2  # fewer positions than a matrix has rows
    return (..., "embed") if decoding else ("batch", ...)

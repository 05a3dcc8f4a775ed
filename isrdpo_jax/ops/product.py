"""A product with a matrix of parameters whose gradient reads both of its operands as they lie."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def product(x: jax.Array, matrix: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """x [..., i] @ matrix [i, o] -> [..., o] of `dtype`.

    Left to JAX, the matrix's gradient is written as the transpose of a product; a CPU then computes what it is made
    of a second time, along columns.
    """
    return jnp.matmul(x, matrix, preferred_element_type=dtype)


def _forward(x: jax.Array, matrix: jax.Array, dtype: jnp.dtype) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return jnp.matmul(x, matrix, preferred_element_type=dtype), (x, matrix)  # where `jax.checkpoint` sees a product


def _backward(dtype: jnp.dtype, operands: tuple[jax.Array, jax.Array], cotangent: jax.Array):
    x, matrix = operands
    dx = jnp.matmul(cotangent, matrix.T, preferred_element_type=dtype)
    # With all positions in one dimension neither operand has to be transposed.
    positions, cotangents = x.reshape(-1, x.shape[-1]), cotangent.reshape(-1, cotangent.shape[-1])
    dmatrix = jnp.matmul(positions.T, cotangents, preferred_element_type=dtype)
    return dx.astype(x.dtype), dmatrix.astype(matrix.dtype)


product.defvjp(_forward, _backward)

"""Products and norms whose gradients are written out, against JAX's own."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from isrdpo_jax.ops.product import product
from isrdpo_jax.ops.rms_norm import rms_norm

RNG = np.random.default_rng(0)


def normal(*shape: int) -> jax.Array:
    return jnp.asarray(RNG.normal(size=shape), jnp.float32)


def check(ours, theirs, x: jax.Array, parameter: jax.Array, tolerance: float = 1e-6):
    """Values and both gradients, each to the tolerance times its largest entry."""
    weights = normal(*jax.eval_shape(theirs, x, parameter).shape)

    def run(function):
        total = lambda *a: (function(*a).astype(jnp.float32) * weights).sum()  # noqa: E731
        return function(x, parameter), *jax.jit(jax.grad(total, (0, 1)))(x, parameter)

    for mine, other in zip(run(ours), run(theirs), strict=True):
        assert mine.dtype == other.dtype
        mine, other = np.asarray(mine, np.float64), np.asarray(other, np.float64)
        np.testing.assert_allclose(mine, other, atol=tolerance * np.abs(other).max())


@pytest.mark.parametrize("shape", [(7, 5), (2, 7, 5), (2, 3, 7, 5)])
def test_a_product_has_the_gradients_of_matmul(shape: tuple[int, ...]):
    check(lambda x, m: product(x, m, jnp.dtype(jnp.float32)), jnp.matmul, normal(*shape), normal(5, 4))


def test_a_product_of_bfloat16_keeps_its_dtypes():
    x, matrix = normal(2, 7, 5).astype(jnp.bfloat16), normal(5, 4).astype(jnp.bfloat16)
    for dtype in (jnp.bfloat16, jnp.float32):
        theirs = lambda x, m, dtype=dtype: jnp.matmul(x, m, preferred_element_type=dtype)  # noqa: E731
        check(lambda x, m, dtype=dtype: product(x, m, jnp.dtype(dtype)), theirs, x, matrix, 2**-7)


def test_no_gradient_is_computed_for_a_matrix_that_is_not_trained():
    """Adapters are trained beside frozen matrices, inside a scan over layers."""

    def compiled(layer):
        def loss(x, matrices):
            return jax.lax.scan(lambda x, m: (layer(x, m), None), x, matrices)[0].sum()

        return jax.jit(jax.grad(loss)).lower(normal(64, 32), normal(3, 32, 32)).compile()

    ours = compiled(lambda x, m: jnp.tanh(product(x, m, jnp.dtype(jnp.float32))))
    theirs = compiled(lambda x, m: jnp.tanh(x @ m))
    assert ours.cost_analysis()["flops"] == pytest.approx(theirs.cost_analysis()["flops"], rel=0.05)


@pytest.mark.parametrize("shape", [(7, 6), (2, 7, 6)])
def test_rms_norm_has_the_gradients_of_its_formula(shape: tuple[int, ...]):
    def formula(x, scale):
        return x / jnp.sqrt((x * x).mean(-1, keepdims=True) + 1e-3) * scale

    check(lambda x, scale: rms_norm(x, scale, 1e-3), formula, normal(*shape), normal(6))

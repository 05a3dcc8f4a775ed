"""What the backward pass computes again."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from isrdpo_jax.models.llama import Llama
from isrdpo_jax.schema import LlamaConfig, Remat

CONFIG = LlamaConfig(vocab_size=16, hidden_size=16, intermediate_size=24, num_layers=2, num_heads=4, num_kv_heads=2)


def products(remat: Remat) -> int:
    """How many matrix products forward and backward pass of the decoder have; a loop's body counts once."""
    graph, params = nnx.split(Llama(CONFIG, remat=remat, rngs=nnx.Rngs(0)))
    ones = jnp.ones((1, 6, 16)), jnp.arange(6)[None], jnp.zeros((1, 6), jnp.int32)
    gradient = jax.jit(jax.grad(lambda params: nnx.merge(graph, params)(*ones).sum()))
    return gradient.lower(params).as_text().count("stablehlo.dot_general")


def test_dots_computes_no_matrix_product_again():
    assert products("dots") == products("none") > 0
    assert products("full") > products("none")

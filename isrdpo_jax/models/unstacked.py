"""The decoder with every layer's parameters in arrays of their own, in the dtype that it computes in: for decoding.

A token needs all parameters once. Read from arrays that stack all layers they are copied slice by slice, and read as
float32 they are twice as many bytes; a policy that is to say thousands of tokens is laid out anew first.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from isrdpo_jax.models.llama import Llama
from isrdpo_jax.models.video_llava import Params, abstract_params
from isrdpo_jax.schema import ModelConfig
from isrdpo_jax.sharding import constrain, parameter_shardings


@functools.cache
def _declare(config: ModelConfig) -> tuple[nnx.GraphDef, nnx.State]:
    def make() -> Llama:
        return Llama(config.llama, attention=config.attention, stacked=False, rngs=nnx.Rngs(0))

    return nnx.split(nnx.eval_shape(make))


def unstack(llama: Params, config: ModelConfig) -> Params:
    """The parameters of the decoder, layer by layer: matrices in the compute dtype, in which they are used anyway."""
    dtype = jnp.dtype(config.compute_dtype)
    layers = {i: jax.tree.map(lambda x, i=i: x[i], llama["layers"]) for i in range(config.llama.num_layers)}
    return jax.tree.map(lambda x: x.astype(dtype) if x.ndim > 1 else x, {**llama, "layers": layers})


def logical_axes(config: ModelConfig) -> Params:
    """The logical axes of every parameter of the unstacked decoder."""
    flat = {path: tuple(v.get_metadata()["axes"]) for path, v in nnx.to_flat_state(_declare(config)[1])}
    return nnx.traversals.unflatten_mapping(flat)


def abstract_unstacked(config: ModelConfig, mesh: Mesh) -> Params:
    """Shapes of the unstacked decoder's parameters, as they lie on the mesh."""
    abstract = jax.eval_shape(lambda llama: unstack(llama, config), abstract_params(config)["llama"])
    shardings = parameter_shardings(mesh, logical_axes(config), abstract)
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), abstract, shardings)


def build_unstacked(config: ModelConfig, llama: Params) -> Llama:
    """The module with these parameters in place; for use inside a jitted function."""
    llama = jax.tree.map(lambda x, axes: constrain(x, axes, x), llama, logical_axes(config))
    return nnx.merge(_declare(config)[0], llama)

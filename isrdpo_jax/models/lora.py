"""Low-rank adapters (LoRA, arXiv 2106.09685) beside the decoder's matrices: kernel + alpha / rank x a @ b.

They live as `lora_a` and `lora_b` next to the kernel that they adapt, while a preference step trains them alone. Then
`merge` makes the decoder a plain one again: whatever samples, judges, stores or exports knows nothing of them.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from isrdpo_jax.models.video_llava import Params, abstract_params, init, logical_axes
from isrdpo_jax.schema import LoraConfig, ModelConfig

_A, _B = "lora_a", "lora_b"


def adapters(tree: Params) -> Params:
    """The part of a tree, and of any like it (shapes, shardings), that is adapters; branches without any are gone."""
    parts = {key: adapters(value) if isinstance(value, dict) else value for key, value in tree.items()}
    return {key: value for key, value in parts.items() if key in (_A, _B) or (isinstance(value, dict) and value)}


def without_adapters(tree: Params) -> Params:
    """The rest."""
    parts = {key: without_adapters(value) if isinstance(value, dict) else value for key, value in tree.items()}
    return {key: value for key, value in parts.items() if key not in (_A, _B)}


def combine(params: Params, trained: Params) -> Params:
    """The parameters with the entries of `trained` in their places, or added."""
    both = {
        key: combine(params[key], value) if isinstance(value, dict) and key in params else value
        for key, value in trained.items()
    }
    return {**params, **both}


def init_adapters(config: ModelConfig, key: jax.Array) -> Params:
    """Fresh adapters of the decoder, which change nothing: b is 0. Pure, to be jitted with `out_shardings`.

    Args:
        config: with `lora` set.
    """
    return adapters(init(config, key))["llama"]


def abstract_adapters(config: ModelConfig) -> Params:
    """`jax.ShapeDtypeStruct` for every adapter of the decoder."""
    return adapters(abstract_params(config))["llama"]


def adapter_axes(config: ModelConfig) -> Params:
    """The logical axes of every adapter of the decoder."""
    return adapters(logical_axes(config))["llama"]


def merge(llama: Params, trained: Params, lora: LoraConfig) -> Params:
    """The decoder with its adapters added into its kernels, in float32."""

    def one(module: Params, adapter: Params) -> Params:
        if _A not in adapter:
            return {**module, **{key: one(module[key], value) for key, value in adapter.items()}}
        change = jnp.einsum("...ir,...ro->...io", adapter[_A], adapter[_B], precision="highest")
        return {**module, "kernel": module["kernel"] + lora.scale * change}

    return one(llama, trained)

"""A policy whose decoder has adapters to train, and the plain one that it becomes."""

from __future__ import annotations

from dataclasses import replace

import jax

from isrdpo_jax.models.lora import (
    abstract_adapters,
    adapter_axes,
    adapters,
    combine,
    init_adapters,
    merge,
    without_adapters,
)
from isrdpo_jax.models.video_llava import Params
from isrdpo_jax.schema import LoraConfig
from isrdpo_jax.sharding import parameter_shardings
from isrdpo_jax.stages.policy import Policy


def with_adapters(policy: Policy, lora: LoraConfig | None, seed: int) -> Policy:
    """The policy with fresh adapters, which change nothing yet; itself, where `lora` is none."""
    if lora is None:
        return policy
    config = policy.config.model_copy(update={"lora": lora})
    shardings = parameter_shardings(policy.mesh, adapter_axes(config), abstract_adapters(config))
    fresh = jax.jit(init_adapters, static_argnums=0, out_shardings=shardings)(config, jax.random.key(seed))
    llama = combine(policy.params["llama"], fresh)
    return replace(policy, config=config, params={**policy.params, "llama": llama})


def trained_and_frozen(policy: Policy) -> tuple[Params, Params]:
    """What a preference step trains of a policy (the decoder, or its adapters alone), and what it leaves."""
    llama = policy.params["llama"]
    others = {name: value for name, value in policy.params.items() if name != "llama"}
    if policy.config.lora is None:
        return llama, others
    return adapters(llama), {**others, "llama": without_adapters(llama)}


def plain_params(trained: Params, frozen: Params, lora: LoraConfig | None) -> Params:
    """All parameters of the plain policy that training ended with: adapters are merged."""
    if lora is None:
        return {**frozen, "llama": trained}
    base = frozen["llama"]
    shardings = jax.tree.map(lambda x: x.sharding, base)
    merged = jax.jit(merge, static_argnums=2, out_shardings=shardings)(base, trained, lora)
    return {**frozen, "llama": merged}

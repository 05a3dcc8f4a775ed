"""The preference step: one packed row per pair, exact accumulation, a guarded update of the decoder.

A row is `[system, video, prompt | chosen | rejected]`: the prefix is computed once for both responses, whose positions
both begin behind it; the segments of `packed_mask` keep them apart. Each of the three parts is padded by itself, so
that the responses lie at the same columns in every row.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from isrdpo_jax.models.lora import combine
from isrdpo_jax.models.video_llava import Params, build
from isrdpo_jax.ops.logprobs import sequence_logprobs
from isrdpo_jax.ops.losses import preference_loss
from isrdpo_jax.programs.packed import Array, PackedRows, packed_logprobs
from isrdpo_jax.programs.update import TrainState, guarded_update, update_program
from isrdpo_jax.schema import DpoConfig, ModelConfig


class PairBatch(NamedTuple):
    """features: [b, n, d_vision]. rows: targets int32[b, 2, m] of (chosen, rejected).

    mask: bool[b, 2, m], the response tokens.
    reference: float32[b, 2] sequence log-probs. weights: float32[b], 0 for padding pairs.
    """

    features: Array
    rows: PackedRows
    mask: Array
    reference: Array
    weights: Array


def _token_logprobs(params: Params, prefix_ids: jax.Array, batch: PairBatch, config: ModelConfig) -> jax.Array:
    length = batch.mask.shape[-1]
    return packed_logprobs(build(config, params), prefix_ids, batch.features, batch.rows, (length, length))


def _logprobs(params: Params, prefix_ids: jax.Array, batch: PairBatch, config: ModelConfig, dpo: DpoConfig):
    logprobs = _token_logprobs(params, prefix_ids, batch, config)
    return sequence_logprobs(logprobs, batch.mask, dpo.ld_alpha, average=dpo.loss == "ipo"), logprobs


@functools.partial(jax.jit, static_argnames=("config", "dpo"))
def pair_logprobs(
    params: Params, prefix_ids: jax.Array, batch: PairBatch, *, config: ModelConfig, dpo: DpoConfig
) -> jax.Array:
    """Sequence log-probs float32[b, 2] by the step's own forward, so that a reference equals its policy exactly."""
    return _logprobs(params, prefix_ids, batch, config, dpo)[0]


@functools.partial(jax.jit, static_argnames="config")
def response_logprobs(params: Params, prefix_ids: jax.Array, batch: PairBatch, *, config: ModelConfig) -> jax.Array:
    """Log-prob of every response token: float32[b, 2, m], 0 behind a response's end."""
    return jnp.where(batch.mask, _token_logprobs(params, prefix_ids, batch, config), 0.0)


def pair_loss(
    trained: Any,
    frozen: Params,
    prefix_ids: jax.Array,
    batch: PairBatch,
    totals: jax.Array,
    config: ModelConfig,
    dpo: DpoConfig,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """This batch's share of the loss: sums over its pairs, divided by the totals of the whole update.

    Args:
        trained: the decoder's parameters, or its adapters. frozen: the other parameters.
        totals: float32[2], pairs and chosen tokens of the whole update (all micro-batches).

    Returns:
        The loss share, and sums over pairs of what is reported.
    """

    def forward(llama: Any) -> tuple[jax.Array, jax.Array]:
        params = {**frozen, "llama": combine(frozen.get("llama", {}), llama)}
        return _logprobs(params, prefix_ids, batch, config, dpo)

    # Saving (almost) nothing for the backward pass, the forward is compiled as in `pair_logprobs`, so that a reference
    # that is the policy has the same bits. `config.remat` does that layer by layer already.
    policy, token_logprobs = (jax.checkpoint(forward) if config.remat == "none" else forward)(trained)
    losses, rewards = preference_loss(
        policy, batch.reference, loss=dpo.loss, beta=dpo.beta, label_smoothing=dpo.label_smoothing
    )
    weights = batch.weights
    loss = (losses * weights).sum() / totals[0]
    if dpo.sft_weight:
        chosen = jnp.where(batch.mask[:, 0], token_logprobs[:, 0], 0.0).sum(-1)
        loss += dpo.sft_weight * -(chosen * weights).sum() / totals[1]
    margins = rewards[:, 0] - rewards[:, 1]
    per_pair = {
        "rewards/chosen": rewards[:, 0],
        "rewards/rejected": rewards[:, 1],
        "rewards/margins": margins,
        "rewards/accuracies": (margins > 0).astype(jnp.float32),
        "logps/chosen": policy[:, 0],
        "logps/rejected": policy[:, 1],
    }
    sums = {name: (value * weights).sum() for name, value in per_pair.items()}
    sums["max_abs_margin"] = (jnp.abs(margins) * weights).max()
    sums["max_abs_logp"] = (jnp.abs(policy) * weights[:, None]).max()
    sums["max_tokens"] = (batch.mask.sum(-1) * weights[:, None]).max()
    return loss, sums


@update_program("config", "dpo", "optimizer")
def dpo_step(
    state: TrainState,
    frozen: Params,
    prefix_ids: jax.Array,
    batches: PairBatch,
    learning_rate: jax.Array,
    *,
    config: ModelConfig,
    dpo: DpoConfig,
    optimizer: optax.GradientTransformation,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One update from `accumulation_steps` micro-batches (the leading axis of every array in `batches`).

    Gradients add up exactly as in one batch: every share is divided by the totals of the update. The learning rate is
    an argument, and the optimizer's own is 1, so that no schedule and no iteration compiles the step anew.
    """
    chosen_tokens = (batches.mask[:, :, 0].sum(-1) * batches.weights).sum()
    totals = jnp.maximum(jnp.stack([batches.weights.sum(), chosen_tokens]), 1.0)
    gradient = jax.value_and_grad(pair_loss, has_aux=True)

    def accumulate(carry, batch):
        grads, loss, sums = carry
        (share, some), more = gradient(state.params, frozen, prefix_ids, batch, totals, config, dpo)
        merged = {
            name: jnp.maximum(sums[name], v) if name.startswith("max_") else sums[name] + v for name, v in some.items()
        }
        return (jax.tree.map(jnp.add, grads, more), loss + share, merged), None

    one = jax.tree.map(lambda x: x[0], batches)
    zeros = jax.tree.map(
        lambda s: jnp.zeros(s.shape, s.dtype),
        jax.eval_shape(lambda: gradient(state.params, frozen, prefix_ids, one, totals, config, dpo)),
    )
    (_, sums), grads = zeros
    (grads, loss, sums), _ = jax.lax.scan(accumulate, (grads, jnp.float32(0), sums), batches)
    state, metrics = guarded_update(state, grads, loss, optimizer, learning_rate)
    means = {name: value if name.startswith("max_") else value / totals[0] for name, value in sums.items()}
    return state, {"loss": loss, "pairs": batches.weights.sum(), **means, **metrics}

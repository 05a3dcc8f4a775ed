"""One supervised step: rows that see a video and rows whose video is masked, weighted token cross-entropy."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from isrdpo_jax.models.video_llava import build
from isrdpo_jax.programs.packed import Array, PackedRows, packed_logprobs
from isrdpo_jax.programs.update import TrainState, guarded_update, update_program
from isrdpo_jax.schema import ModelConfig


class SftBatch(NamedTuple):
    """pixels: [b, t, S, S, 3] of the video rows. weights: float32 like the targets, 0 for padding; None: no rows."""

    pixels: Array
    video_rows: PackedRows
    video_weights: Array
    text_rows: PackedRows | None
    text_weights: Array | None


def _cross_entropy(logprobs: jax.Array, weights: Array) -> jax.Array:
    return -(logprobs * weights).sum() / jnp.maximum(weights.sum(), 1.0)


@update_program("config", "optimizer", "text_weight")
def sft_step(
    state: TrainState,
    batch: SftBatch,
    prefix_ids: jax.Array,
    *,
    config: ModelConfig,
    optimizer: optax.GradientTransformation,
    text_weight: float,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """Trains every parameter (tower, projector and decoder)."""

    def loss_fn(params):
        model = build(config, params)
        features = model.encode(batch.pixels)
        video = _cross_entropy(packed_logprobs(model, prefix_ids, features, batch.video_rows), batch.video_weights)
        if batch.text_rows is None or batch.text_weights is None:
            return video, {"loss/video": video}
        text = _cross_entropy(packed_logprobs(model, prefix_ids, None, batch.text_rows), batch.text_weights)
        return video + text_weight * text, {"loss/video": video, "loss/text": text}

    (loss, parts), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
    state, metrics = guarded_update(state, grads, loss, optimizer)
    return state, {"loss": loss, **parts, **metrics}

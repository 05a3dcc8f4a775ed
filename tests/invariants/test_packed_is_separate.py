"""Segments packed behind one prefix give what separate rows give: values and gradients."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import (
    PREFIX_IDS,
    PREFIX_LENGTH,
    TINY,
    assert_trees_close,
    pair_batch,
    random_features,
    random_pairs,
)

from isrdpo_jax.data.packing import Segment, pack_segments
from isrdpo_jax.models.video_llava import build
from isrdpo_jax.ops.losses import preference_loss
from isrdpo_jax.programs.dpo_step import pair_loss, response_logprobs
from isrdpo_jax.programs.packed import PackedRows, packed_logprobs
from isrdpo_jax.schema import DpoConfig

PAIRS = random_pairs(3)
FEATURES = random_features(3)
WIDTH = 24  # of rows of segments
REFERENCE = np.random.default_rng(1).normal(-20, 2, (3, 2)).astype(np.float32)
DPO = DpoConfig(batch_size=3, sft_weight=0.5)


def weighted_logprobs(llama, params, features, rows: PackedRows, weights) -> jax.Array:
    """Sum of weight times log-prob in each row: float32[b]."""
    model = build(TINY, {**params, "llama": llama})
    return (packed_logprobs(model, PREFIX_IDS, features, rows) * weights).sum(-1)


def test_a_packed_pair_is_two_separate_rows(tiny_params):
    """Loss and gradient, with the supervised term."""
    batch = pair_batch(PAIRS, FEATURES, REFERENCE)
    chosen_tokens = sum(len(pair.chosen) for pair in PAIRS)
    separate = [Segment.of_response(pair.turn, side) for pair in PAIRS for side in (pair.chosen, pair.rejected)]
    rows, weights = pack_segments([[one] for one in separate], PREFIX_LENGTH, WIDTH, 8)

    def separate_loss(llama):
        logps = weighted_logprobs(llama, tiny_params, jnp.repeat(FEATURES, 2, axis=0), PackedRows(*rows), weights)
        losses, _ = preference_loss(logps.reshape(3, 2), REFERENCE, loss=DPO.loss, beta=DPO.beta)
        return losses.mean() - DPO.sft_weight * logps[::2].sum() / chosen_tokens

    def packed_loss(llama):
        return pair_loss(llama, tiny_params, PREFIX_IDS, batch, jnp.array([3.0, chosen_tokens]), TINY, DPO)[0]

    packed, packed_grads = jax.jit(jax.value_and_grad(packed_loss))(tiny_params["llama"])
    expected, expected_grads = jax.jit(jax.value_and_grad(separate_loss))(tiny_params["llama"])
    assert float(packed) == pytest.approx(float(expected), rel=1e-6)
    assert_trees_close(packed_grads, expected_grads, 1e-5)


def test_one_response_does_not_see_the_other(tiny_params):
    batch = pair_batch(PAIRS, FEATURES)
    swapped = pair_batch([type(pair)(pair.turn, pair.chosen, (5, 5, 5)) for pair in PAIRS], FEATURES)
    one, other = (response_logprobs(tiny_params, PREFIX_IDS, b, config=TINY) for b in (batch, swapped))
    np.testing.assert_array_equal(one[:, 0], other[:, 0])
    assert not np.array_equal(one[:, 1], other[:, 1])
    np.testing.assert_array_equal(one == 0, ~batch.mask)


@pytest.mark.parametrize("sees_video", [True, False])
def test_packed_segments_are_separate_rows(tiny_params, sees_video: bool):
    """Rows that see a video and rows whose video is masked; ragged segments with labels inside the turn."""
    segments = [
        [
            Segment.of_response(pair.turn, pair.chosen, 2.0, [(0, 4, 0.5)]),
            Segment.of_response(pair.turn[:1], pair.rejected),
        ]
        for pair in PAIRS
    ]
    features = FEATURES if sees_video else None
    repeated = np.repeat(FEATURES, 2, axis=0) if sees_video else None
    packed, packed_weights = pack_segments(segments, PREFIX_LENGTH, WIDTH, 18)
    alone, alone_weights = pack_segments([[one] for row in segments for one in row], PREFIX_LENGTH, WIDTH, 9)

    def total(llama, features, rows, weights):
        each = weighted_logprobs(llama, tiny_params, features, PackedRows(*rows), weights)
        return each.sum(), each

    run = jax.jit(jax.value_and_grad(total, has_aux=True))
    (_, each), grads = run(tiny_params["llama"], features, packed, packed_weights)
    (_, expected), expected_grads = run(tiny_params["llama"], repeated, alone, alone_weights)
    assert np.isfinite(each).all()
    np.testing.assert_allclose(each, expected.reshape(3, 2).sum(-1), rtol=1e-5)
    assert_trees_close(grads, expected_grads, 1e-5)

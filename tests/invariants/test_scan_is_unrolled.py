"""Scanned, unrolled and rematerialised layers are one function, with one gradient."""

from __future__ import annotations

import functools

import jax
import numpy as np
import pytest
from tiny import PREFIX_IDS, TINY, assert_trees_close, pair_batch, random_pairs, random_pixels

from isrdpo_jax.models.video_llava import build
from isrdpo_jax.ops.logprobs import sequence_logprobs
from isrdpo_jax.programs.packed import packed_logprobs

BATCH = pair_batch(random_pairs(2), np.zeros((2, 1), np.float32))


@functools.partial(jax.jit, static_argnames="config")
def value_and_gradient(params, *, config):
    """Through tower, projector and decoder."""

    def total(params):
        model = build(config, params)
        logprobs = packed_logprobs(model, PREFIX_IDS, model.encode(random_pixels(2)), BATCH.rows)
        each = sequence_logprobs(logprobs, BATCH.mask)
        return each.sum(), each

    return jax.value_and_grad(total, has_aux=True)(params)


@pytest.mark.parametrize("change", [{"unroll_layers": True}, {"remat": "dots"}, {"remat": "full"}])
def test_values_and_gradients_are_those_of_the_plain_scan(tiny_params, change: dict):
    (_, each), grads = value_and_gradient(tiny_params, config=TINY)
    (_, other), other_grads = value_and_gradient(tiny_params, config=TINY.model_copy(update=change))
    np.testing.assert_allclose(other, each, rtol=1e-6)
    # A key's bias moves no softmax: its gradient is zero, and what is computed is rounding.
    assert_trees_close(other_grads, grads, 1e-5, floor=0.01)

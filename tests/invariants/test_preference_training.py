"""What an update may and may not do: padding, bad batches, and a loss that falls."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from tiny import assert_trees_close, assert_trees_equal
from training import DPO, FEATURES, PAIRS, Layout, first_moment, stored_reference

WEIGHTS = np.array([1, 1, 1, 1, 0, 0, 0, 0], np.float32)
REFERENCE = stored_reference()


def test_padding_pairs_change_nothing(one_device: Layout):
    """Whatever fills the places of weight 0, and equal to the mean over the real pairs alone."""
    first = slice(0, 4)
    padded = one_device.step(one_device.state(), one_device.batches(reference=REFERENCE, weights=WEIGHTS))
    refilled = one_device.batches(
        [*PAIRS[first], *PAIRS[first][::-1]],
        np.concatenate([FEATURES[first], -FEATURES[first]]),
        np.concatenate([REFERENCE[first], REFERENCE[first] + 50]),
        WEIGHTS,
    )
    other = one_device.step(one_device.state(), refilled)
    assert_trees_equal(padded[0].params, other[0].params)
    assert padded[1] == other[1]

    twice = one_device.batches(
        [*PAIRS[first]] * 2, np.tile(FEATURES[first], (2, 1, 1)), np.tile(REFERENCE[first], (2, 1))
    )
    doubled = one_device.step(one_device.state(), twice)
    assert_trees_close(first_moment(padded[0]), first_moment(doubled[0]), 1e-5)
    assert padded[1].pop("pairs") == 4 and doubled[1].pop("pairs") == 8
    assert padded[1] == pytest.approx(doubled[1], rel=1e-5)


def test_a_batch_that_is_not_finite_changes_no_weight_and_is_counted(one_device: Layout):
    good = one_device.batches(reference=REFERENCE)
    poisoned = one_device.batches(
        features=np.where(np.arange(8)[:, None, None] == 3, np.nan, FEATURES), reference=REFERENCE
    )
    state, metrics = one_device.step(one_device.state(), good)
    assert metrics["update_applied"] == 1 and int(state.bad_updates) == 0
    before = jax.device_get(state)
    for bad in (1, 2):
        state, metrics = one_device.step(state, poisoned)
        assert metrics["update_applied"] == 0 and int(state.bad_updates) == bad
    assert_trees_equal(jax.device_get((state.params, state.opt_state)), (before.params, before.opt_state))
    assert int(state.step) == 3
    state, metrics = one_device.step(state, good)
    assert metrics["update_applied"] == 1 and int(state.bad_updates) == 0
    assert not np.array_equal(state.params["head"], before.params["head"])


def test_a_reference_that_is_the_policy_gives_margins_of_zero(one_device: Layout):
    reference = one_device.score(one_device.batches())
    _, metrics = one_device.step(one_device.state(), one_device.batches(reference=reference))
    assert metrics["max_abs_margin"] <= DPO.beta * 1e-6 * metrics["max_abs_logp"]
    assert metrics["loss"] == pytest.approx(np.log(2), abs=1e-6)


def test_on_separable_pairs_the_loss_falls(one_device: Layout):
    batches = one_device.batches(reference=one_device.score(one_device.batches()))
    state, losses = one_device.state(), []
    for _ in range(20):
        state, metrics = one_device.step(state, batches)
        losses.append(metrics["loss"])
    assert losses[0] == pytest.approx(np.log(2), abs=1e-6)
    assert (np.diff(losses) < 0).all()
    assert losses[-1] < 0.8 * losses[0]
    assert metrics["rewards/accuracies"] == 1
    assert metrics["rewards/margins"] == pytest.approx(
        metrics["rewards/chosen"] - metrics["rewards/rejected"], rel=1e-4
    )


def test_tower_and_projector_are_frozen(one_device: Layout):
    before = jax.device_get(one_device.frozen)
    state, _ = one_device.step(one_device.state(), one_device.batches(reference=REFERENCE))
    assert_trees_equal(jax.device_get(one_device.frozen), before)
    assert set(state.params) == {"embedding", "layers", "norm", "head"}

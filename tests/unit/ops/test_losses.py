"""Every preference loss against its formula in float64."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from isrdpo_jax.ops.losses import loss_at_zero_margin, preference_loss

RNG = np.random.default_rng(0)
POLICY = RNG.normal(-20, 8, (64, 2)).astype(np.float32)
REFERENCE = RNG.normal(-20, 8, (64, 2)).astype(np.float32)
MARGINS = (POLICY[:, 0] - POLICY[:, 1]).astype(np.float64) - (REFERENCE[:, 0] - REFERENCE[:, 1])


def cost(x: np.ndarray) -> np.ndarray:
    """-log σ(x)."""
    return np.log1p(np.exp(-x))


FORMULAS = [
    ("sigmoid", 0.1, 0.0, lambda m: cost(0.1 * m)),
    ("sigmoid", 0.3, 0.0, lambda m: cost(0.3 * m)),
    ("sigmoid", 0.1, 0.2, lambda m: 0.8 * cost(0.1 * m) + 0.2 * cost(-0.1 * m)),
    ("robust", 0.1, 0.2, lambda m: (0.8 * cost(0.1 * m) - 0.2 * cost(-0.1 * m)) / 0.6),
    ("hinge", 0.1, 0.0, lambda m: np.maximum(0, 1 - 0.1 * m)),
    ("ipo", 0.1, 0.0, lambda m: (m - 5) ** 2),
    ("ipo", 0.25, 0.0, lambda m: (m - 2) ** 2),
]
each_loss = pytest.mark.parametrize(("loss", "beta", "smoothing", "formula"), FORMULAS)


@each_loss
def test_each_pair_costs_what_the_formula_says(loss, beta, smoothing, formula):
    losses, _ = preference_loss(POLICY, REFERENCE, loss=loss, beta=beta, label_smoothing=smoothing)
    np.testing.assert_allclose(losses, formula(MARGINS), rtol=3e-5, atol=1e-5)


@each_loss
def test_at_zero_margin(loss, beta, smoothing, formula):
    np.testing.assert_allclose(loss_at_zero_margin(loss, beta, smoothing), formula(np.float64(0)), rtol=1e-6)


def test_sigmoid_at_zero_margin_is_log_2():
    assert loss_at_zero_margin("sigmoid", 0.1) == pytest.approx(np.log(2), rel=1e-7)


@each_loss
def test_the_gradient_raises_the_chosen_and_lowers_the_rejected(loss, beta, smoothing, formula):
    grads = jax.grad(
        lambda policy: preference_loss(policy, REFERENCE, loss=loss, beta=beta, label_smoothing=smoothing)[0].sum()
    )(POLICY)
    target = {"ipo": 1 / (2 * beta), "hinge": 1 / beta}.get(loss, 0.0)  # the margin below which every loss pulls
    wanting = target > MARGINS
    assert wanting.any()
    assert (grads[wanting, 0] < 0).all()
    assert (grads[wanting, 1] > 0).all()
    np.testing.assert_allclose(grads[:, 0], -grads[:, 1], rtol=1e-6)


def test_rewards_are_beta_times_the_log_ratios():
    _, rewards = preference_loss(POLICY, REFERENCE, loss="sigmoid", beta=0.1)
    np.testing.assert_allclose(rewards, 0.1 * (POLICY - REFERENCE), rtol=1e-6)


def test_far_margins_stay_finite():
    policy, reference = np.array([[-3e4, 0.0], [0.0, -3e4]], np.float32), np.zeros((2, 2), np.float32)
    losses, _ = preference_loss(policy, reference, loss="sigmoid", beta=1.0)
    np.testing.assert_allclose(losses, [3e4, 0.0])


def test_an_unknown_loss_is_refused():
    with pytest.raises(ValueError, match="'dpo'"):
        preference_loss(POLICY, REFERENCE, loss="dpo", beta=0.1)

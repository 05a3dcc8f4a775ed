"""The schedule, the order of the pairs, and the check that training starts at its reference."""

from __future__ import annotations

import logging

import numpy as np
import pytest

from isrdpo_jax.errors import DivergedError
from isrdpo_jax.schema import DpoConfig
from isrdpo_jax.stages.optimize import learning_rate, start_check, update_count
from isrdpo_jax.stages.pair_batches import epoch_order, updates


@pytest.mark.parametrize("total", [1, 2, 5, 40])
@pytest.mark.parametrize("warmup", [0.0, 0.1, 0.5, 1.0])
def test_the_rate_rises_to_its_peak_and_falls_and_no_update_is_wasted(total: int, warmup: float):
    dpo = DpoConfig(learning_rate=0.5, warmup_fraction=warmup)
    rates = np.array([learning_rate(update, total, dpo) for update in range(total)])
    peak = max(int(np.ceil(warmup * total)) - 1, 0)
    assert (rates > 0).all()
    assert rates[peak] == rates.max() == 0.5
    assert (np.diff(rates[: peak + 1]) > 0).all()
    assert (np.diff(rates[peak:]) < 0).all()
    np.testing.assert_allclose(
        np.diff(rates, 2)[[i for i in range(total - 2) if i + 1 != peak]], 0, atol=1e-12
    )  # two lines


def test_updates_cover_every_pair_once_and_pad_the_last_with_weight_zero():
    dpo = DpoConfig(batch_size=4)
    batches = list(updates(epoch_order(10, seed=0, iteration=1, epoch=0), dpo))
    assert [len(indices) for indices, _ in batches] == [4, 4, 4]
    weights = np.concatenate([weights for _, weights in batches])
    real = np.concatenate([indices for indices, _ in batches])[weights == 1]
    assert sorted(real) == list(range(10))
    np.testing.assert_array_equal(weights[-4:], [1, 1, 0, 0])
    assert update_count(10, dpo) == 3
    assert update_count(10, DpoConfig(batch_size=4, epochs=3)) == 9


def test_the_order_is_a_function_of_seed_iteration_and_epoch():
    order = epoch_order(50, 0, 1, 0)
    np.testing.assert_array_equal(order, epoch_order(50, 0, 1, 0))
    for other in ((1, 1, 0), (0, 2, 0), (0, 1, 1)):
        assert not np.array_equal(order, epoch_order(50, *other))


def first_batch(margin: float) -> dict[str, float]:
    return {"max_abs_margin": margin, "max_abs_logp": 40.0, "max_tokens": 30.0, "loss": 0.693147}


def test_float32_must_start_at_its_reference():
    dpo = DpoConfig(beta=0.1)
    assert "0.693147" in start_check(first_batch(3.9e-6), dpo, "float32")
    for margin in (4.1e-6, float("nan")):
        with pytest.raises(DivergedError, match="not this policy"):
            start_check(first_batch(margin), dpo, "float32")


@pytest.mark.parametrize("beta", [0.1, 1.0])
def test_bfloat16_warns_and_then_stops(caplog, beta):
    """At so many nats, whatever beta makes of them."""
    dpo = DpoConfig(beta=beta)
    with caplog.at_level(logging.WARNING):
        start_check(first_batch(0.9 * beta), dpo, "bfloat16")
        assert not caplog.records
        start_check(first_batch(1.5 * beta), dpo, "bfloat16")
    assert f"above {beta:.3g}" in caplog.text
    with pytest.raises(DivergedError, match=f"above {2 * beta:.3g}"):
        start_check(first_batch(2.1 * beta), dpo, "bfloat16")

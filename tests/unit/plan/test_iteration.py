"""Roofline, calls, time and cost: plain arithmetic, checked by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
from synthetic_plan import CONFIG, WORK

from isrdpo_jax.errors import ConfigError
from isrdpo_jax.plan.chips import CHIPS, GIB, PRICES, chip_of
from isrdpo_jax.plan.iteration import calls, cost, stage_seconds
from isrdpo_jax.plan.roofline import roofline
from isrdpo_jax.schema import DpoConfig

V5E = chip_of("TPU v5 lite")


@pytest.mark.parametrize(
    ("flops", "hbm", "ici", "expected"),
    [(197e12, 1, 1, (1.0, "compute")), (1, 2 * 819e9, 1, (2.0, "hbm")), (1, 1, 3 * 200e9, (3.0, "ici"))],
)
def test_the_slowest_resource_bounds(flops, hbm, ici, expected):
    assert roofline(V5E, flops, hbm, ici) == pytest.approx(expected)


def test_a_device_that_is_half_a_chip_has_half_of_its_resources():
    assert roofline(V5E, 197e12, 0, 0, devices_per_chip=2)[0] == pytest.approx(2.0)


def test_an_unknown_chip_is_refused_with_those_that_are_known():
    with pytest.raises(ConfigError, match="TPU v3.*v5e, v5p, v6e, tpu7x"):
        chip_of("TPU v3")


def test_every_price_is_of_a_known_chip_and_memory_is_in_whole_gib():
    assert PRICES.keys() <= {chip.name for chip in CHIPS.values()}
    assert all(chip.hbm_bytes % GIB == 0 for chip in CHIPS.values())


def test_calls_of_an_iteration():
    """100 videos in batches of 16, 150 pairs in updates of 8 x 16."""
    assert calls(CONFIG, WORK) == {
        "collect": {"encode": 7, "prefill": 7, "respond": 7, "describe": 7, "judge": 7},
        "reference": {"encode": 16, "reference": 16},
        "optimize": {"encode": 16, "dpo_step": 2},
    }


def test_more_epochs_repeat_the_updates_and_controls_prefill_twice():
    config = CONFIG.model_copy(
        update={
            "dpo": DpoConfig(batch_size=64, epochs=3),
            "judge": CONFIG.judge.model_copy(update={"video": "blank", "context": "none"}),
        }
    )
    assert calls(config, WORK) == {
        "collect": {"encode": 14, "prefill": 14, "respond": 7, "describe": 0, "judge": 7},
        "reference": {"encode_pairs": 3, "reference": 3},
        "optimize": {"encode_pairs": 9, "dpo_step": 9},
    }


def test_seconds_add_up_over_calls():
    seconds = {"encode": 1.0, "prefill": 2.0, "respond": 3.0, "describe": 4.0, "judge": 5.0}
    found = stage_seconds({**seconds, "reference": 10.0, "dpo_step": 100.0}, calls(CONFIG, WORK))
    assert found == {"collect": 7 * 15.0, "reference": 16 * 11.0, "optimize": 16 + 200.0}


def test_a_program_that_is_called_and_has_no_time_leaves_the_iteration_without_one():
    assert stage_seconds({"encode": 1.0}, calls(CONFIG, WORK)) is None
    assert stage_seconds({"encode": None, "dpo_step": 1.0}, {"optimize": {"encode": 0, "dpo_step": 2}}) == {
        "optimize": 2
    }


def test_no_pairs_need_no_updates():
    assert calls(CONFIG, replace(WORK, pairs=0))["optimize"] == {"encode": 0, "dpo_step": 0}


def test_cost_is_by_chip_and_hour():
    assert cost(1800, 16, 1.2) == pytest.approx(9.6)
    assert cost(1800, 16, None) is None

"""Roofline, calls, time and cost: plain arithmetic, checked by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from synthetic_plan import CONFIG, COUNTS, HALL, MODEL, WORK

from isrdpo_jax.data.prompts import load_prompts
from isrdpo_jax.errors import ConfigError
from isrdpo_jax.plan.chips import CHIPS, GIB, PRICES, chip_of
from isrdpo_jax.plan.iteration import calls, cost, stage_seconds
from isrdpo_jax.plan.roofline import roofline
from isrdpo_jax.plan.workload import estimated_tokens, make_workload
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
    """100 videos in 16 lanes, 300 questions in both of their places, 150 pairs in updates of 8 x 16; two answers of 256
    tokens to a question and a description of as many, of which slots say all but the first: 48 slots, 64 at a time."""
    tokens = (600 + 100) * 255
    assert calls(CONFIG, WORK, HALL) == {
        "collect": {
            "unstack": 1, "encode": 7, "prefill": 7, "place": 7, "read": 19, "describe": 7,
            "decode": math.ceil(tokens / (48 * 64 * 0.85)), "judge": 19,
        },
        "reference": {"encode": 16, "reference": 16},
        "optimize": {"encode": 16, "dpo_step": 2},
    }


def test_slots_that_stop_at_a_string_are_looked_at_more_often():
    config = CONFIG.model_copy(update={"sampling": CONFIG.sampling.model_copy(update={"stop": ("\n",)})})
    often, seldom = (calls(one, WORK, HALL)["collect"]["decode"] for one in (config, CONFIG))
    assert often == pytest.approx(8 * seldom, rel=0.1)


def test_turns_of_one_width_are_read_together():
    """A description that is asked for afresh is as short a turn as a question."""
    together = replace(WORK, describe_tokens=WORK.turn_tokens)
    found = calls(CONFIG, together, HALL)["collect"]
    assert (found["read"], found["describe"]) == (math.ceil(700 / 32), 0)


def test_more_epochs_repeat_the_updates_and_controls_look_twice():
    config = CONFIG.model_copy(
        update={
            "dpo": DpoConfig(batch_size=64, epochs=3),
            "judge": CONFIG.judge.model_copy(update={"video": "blank", "context": "none"}),
        }
    )
    work = make_workload(config, MODEL, load_prompts(), COUNTS, estimated_tokens)
    assert calls(config, work, HALL) == {
        "collect": {
            "unstack": 1, "encode": 14, "prefill": 14, "place": 14, "read": 19, "describe": 0,
            "decode": math.ceil(600 * 255 / (48 * 64 * 0.85)), "judge": 19,
        },
        "reference": {"encode_pairs": 3, "reference": 3},
        "optimize": {"encode_pairs": 9, "dpo_step": 9},
    }


def test_seconds_add_up_over_calls():
    often = calls(CONFIG, WORK, HALL)
    seconds = {
        "unstack": 0.5, "encode": 1.0, "prefill": 2.0, "place": 0.0, "read": 3.0, "describe": 4.0, "decode": 6.0,
        "judge": 5.0, "reference": 10.0, "dpo_step": 100.0,
    }  # fmt: skip
    assert stage_seconds(seconds, often) == {
        "collect": 0.5 + 7 * 3.0 + 19 * 3.0 + 7 * 4.0 + often["collect"]["decode"] * 6.0 + 19 * 5.0,
        "reference": 16 * 11.0,
        "optimize": 16 + 200.0,
    }


def test_a_program_that_is_called_and_has_no_time_leaves_the_iteration_without_one():
    assert stage_seconds({"encode": 1.0}, calls(CONFIG, WORK, HALL)) is None
    assert stage_seconds({"encode": None, "dpo_step": 1.0}, {"optimize": {"encode": 0, "dpo_step": 2}}) == {
        "optimize": 2
    }


def test_no_pairs_need_no_updates():
    assert calls(CONFIG, replace(WORK, pairs=0), HALL)["optimize"] == {"encode": 0, "dpo_step": 0}


def test_cost_is_by_chip_and_hour():
    assert cost(1800, 16, 1.2) == pytest.approx(9.6)
    assert cost(1800, 16, None) is None

from pathlib import Path

import pytest

from isrdpo_jax.report.load import Iteration, Run
from isrdpo_jax.report.training import MEANINGS, read_training
from isrdpo_jax.runs.layout import IterationLayout


def read(chosen, rejected, loss=0.5, updates=10, beta=0.1):
    """The reading of a training whose rewards grow linearly to the given ends."""
    rows = tuple(
        {
            "step": step,
            "loss": loss,
            "rewards/chosen": chosen * step / updates,
            "rewards/rejected": rejected * step / updates,
            "rewards/margins": (chosen - rejected) * step / updates,
            "rewards/accuracies": 0.7,
        }
        for step in range(1, updates + 1)
    )
    iteration = Iteration(IterationLayout(Path("iter_01"), 1), (), metrics=rows)
    return read_training(Run("run", Path("run"), {"dpo": {"beta": beta}}, (iteration,), ()), iteration)


def test_displacement_in_nats():
    training = read(chosen=-0.4, rejected=-0.8)  # the last fifth is steps 9 and 10, 0.95 of the end
    assert training.reading == "Displacement" and not training.alarm
    assert training.chosen == pytest.approx(-0.4 * 0.95 / 0.1)
    assert "chosen −3.80, rejected −7.60" in training.says


def test_readings():
    assert read(chosen=0.2, rejected=-0.3).reading == "Healthy"
    assert read(chosen=0.001, rejected=-0.001).reading == "Stuck"
    assert read(chosen=-0.3, rejected=0.2).reading == "Reversed"
    assert read(chosen=0.2, rejected=-0.3, loss=None).reading == "Not finite"
    assert read(chosen=0.001, rejected=0.0).alarm and read(-0.3, 0.2).alarm and not read(0.2, -0.3).alarm
    assert {read(0.2, -0.3).reading, read(0, 0).reading, read(-0.3, 0.2).reading} < set(MEANINGS)


def test_not_trained_yet():
    training = read(0, 0, updates=0)
    assert (training.updates, training.reading, training.says) == (0, None, "Not trained yet.")


def test_metrics_without_a_known_beta_still_read():
    training = read(chosen=0.2, rejected=-0.3, beta=None)
    assert training.chosen is None
    assert "margin grew" in training.says

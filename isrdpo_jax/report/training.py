"""What the training curves of one iteration say: a word that `MEANINGS` explains, and its numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass

from isrdpo_jax.report.load import Iteration, Run
from isrdpo_jax.report.measures import number, signed

MIN_MARGIN = 0.02  # for the sigmoid loss this is 0.01 below log 2: nothing was learnt
MEANINGS = {
    "Healthy": "the chosen responses became likelier and the margin grew.",
    "Displacement": (
        "the margin grew because both log-probs fell, the rejected further (likelihood displacement). Expected with "
        "DPO, and harmless while held-out accuracy holds; dpo.sft_weight counters it."
    ),
    "Stuck": (
        "the margin stayed near 0 (the loss near log 2): the policy hardly moved from its reference. Raise the "
        "learning rate, train on more pairs, or look whether chosen and rejected differ at all."
    ),
    "Reversed": "the updates came to prefer the rejected responses. Lower the learning rate, or check the pairs.",
    "Not finite": "some losses were not finite, and their updates were not applied. Lower the learning rate.",
}
ALARMS = ("Stuck", "Reversed", "Not finite")


@dataclass(frozen=True)
class Training:
    """The end of one iteration's training: means over its last fifth, and their reading.

    Attributes:
        updates: how many updates are recorded.
        chosen: how far the log-probs of the chosen responses moved from the reference, nats (reward / beta).
        rejected: the same of the rejected responses.
        reading: a key of `MEANINGS`, or None where there is nothing to read yet.
        says: the reading's numbers, in words.
    """

    updates: int
    loss: float | None
    margin: float | None
    accuracy: float | None
    chosen: float | None
    rejected: float | None
    reading: str | None
    says: str

    @property
    def alarm(self) -> bool:
        """Whether the reading asks for action."""
        return self.reading in ALARMS


def read_training(run: Run, iteration: Iteration) -> Training:
    """Summarises `metrics.jsonl`; an iteration that has not trained yet says so."""
    rows = iteration.metrics
    if not rows:
        return Training(0, None, None, None, None, None, None, "Not trained yet.")
    beta = run.setting("dpo.beta")
    end = rows[-max(1, len(rows) // 5) :]
    loss, margin, accuracy = (_mean(end, key) for key in ("loss", "rewards/margins", "rewards/accuracies"))
    chosen, rejected = (_nats(_mean(end, key), beta) for key in ("rewards/chosen", "rewards/rejected"))
    not_finite = sum("loss" in row and row["loss"] is None for row in rows)  # JSON has no NaN: null stands for it
    if not_finite:
        reading, says = "Not finite", f"{not_finite} of {len(rows)} losses."
    elif margin is None:
        reading, says = None, "No margins are recorded."
    elif abs(margin) < MIN_MARGIN:
        reading, says = "Stuck", f"margin {number(margin)}."
    elif margin < 0:
        reading, says = "Reversed", f"margin {number(margin)}."
    elif chosen is None or rejected is None:
        reading, says = None, f"The margin grew to {number(margin)}."
    else:
        reading = "Displacement" if chosen < 0 else "Healthy"
        says = f"chosen {signed(chosen)}, rejected {signed(rejected)}."
    return Training(len(rows), loss, margin, accuracy, chosen, rejected, reading, says)


def _nats(reward: float | None, beta: float | None) -> float | None:
    return None if reward is None or not beta else reward / beta


def _mean(rows: tuple[dict, ...], key: str) -> float | None:
    values = [float(row[key]) for row in rows if isinstance(row.get(key), int | float)]
    values = [value for value in values if math.isfinite(value)]
    return sum(values) / len(values) if values else None

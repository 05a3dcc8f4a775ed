"""The length ledger of held-out answers: words per test set and iteration, and how many more than the baseline's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from isrdpo_jax.data.datasets.llava_hound import set_of
from isrdpo_jax.evaluation.bootstrap import Estimate, mean_interval, paired_difference
from isrdpo_jax.report.load import Answer, Run

SAMPLES = 1000
HELD_OUT = "held-out"


@dataclass(frozen=True)
class Entry:
    """Words per answer of one run and iteration in one test set.

    Attributes:
        more: words more than the baseline run's answers to the same questions at the same iteration; None for the
            baseline itself, and where it has none.
    """

    test_set: str
    iteration: int
    words: Estimate
    more: Estimate | None


def baseline_of(runs: Sequence[Run]) -> int:
    """The run that others are compared with: the first whose judge sees no description, or else the first."""
    plain = [i for i, run in enumerate(runs) if run.setting("judge.context") == "none"]
    return plain[0] if plain else 0


def ledger(run: Run, baseline: Run | None) -> list[Entry]:
    """Words per answer of a run, by test set and iteration; joined with the baseline's answers by question id."""
    entries = []
    for iteration in run.iterations:
        other = next((i for i in baseline.iterations if i.number == iteration.number), None) if baseline else None
        theirs = {answer.id: answer for answer in other.answers} if other else {}
        for test_set in sorted({_set(run, answer) for answer in iteration.answers}):
            answers = [answer for answer in iteration.answers if _set(run, answer) == test_set]
            both = [(answer, theirs[answer.id]) for answer in answers if answer.id in theirs]
            more = _difference(both) if both else None
            entries.append(Entry(test_set, iteration.number, _mean(answers), more))
    return sorted(entries, key=lambda entry: (entry.test_set, entry.iteration))


def _set(run: Run, answer: Answer) -> str:
    return set_of(answer.id) if run.setting("data.dataset") == "llava_hound" else HELD_OUT


def _mean(answers: Sequence[Answer]) -> Estimate:
    words = np.array([answer.words for answer in answers], np.float64)
    return mean_interval(words, np.ones(len(words)), [answer.video for answer in answers], SAMPLES, seed=0)


def _difference(both: Sequence[tuple[Answer, Answer]]) -> Estimate:
    ours, theirs = np.array([[one.words, other.words] for one, other in both], np.float64).T
    ones = np.ones(len(both))
    return paired_difference(ours, ones, theirs, ones, [one.video for one, _ in both], SAMPLES, seed=0)

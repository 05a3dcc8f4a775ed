"""Rows to figures: ratios of sums with bootstrap intervals over videos."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from isrdpo_jax.evaluation.bootstrap import Estimate, mean_interval

Row = dict[str, Any]
Summary = dict[str, dict[str, float | int | None]]


def _ratio(rows: Sequence[Row], over: Callable[[Row], float], under: Callable[[Row], float], samples: int) -> Estimate:
    sums = np.array([over(row) for row in rows], np.float64)
    counts = np.array([under(row) for row in rows], np.float64)
    return mean_interval(sums, counts, [row["video"] for row in rows], samples, seed=0)


def words(text: str) -> int:
    return len(text.split())


def summarise_heldout(answers: Sequence[Row], descriptions: Sequence[Row], samples: int) -> Summary:
    """Accuracy, false statements (share and per answer), words, unfinished answers, description accuracy."""
    graded = [row for row in answers if "grade" in row]
    described = [row for row in descriptions if "grade" in row]
    figures = {
        "words": _ratio(answers, lambda row: words(row["text"]), lambda row: 1, samples),
        "unfinished": _ratio(answers, lambda row: row["finish"] == "length", lambda row: 1, samples),
    }
    if graded:
        figures |= {
            "accuracy": _ratio(graded, lambda r: r["grade"]["core"], lambda r: 1, samples),
            "false_share": _ratio(graded, lambda r: r["grade"]["false"], lambda r: r["grade"]["statements"], samples),
            "false_per_answer": _ratio(graded, lambda r: r["grade"]["false"], lambda r: 1, samples),
            "description_accuracy": _ratio(
                described, lambda r: r["grade"]["right"], lambda r: r["grade"]["total"], samples
            ),
        }
    return {name: estimate.to_json() for name, estimate in figures.items()}


def summarise_iteration(pairs: Sequence[Row], correct: Sequence[Row], contexts: Sequence[Row], samples: int) -> Summary:
    """The iteration's pairs (the paper's Figure 4: words of chosen and rejected, their ratio) and its judge."""
    chosen, rejected = (lambda r: words(r["chosen"])), (lambda r: words(r["rejected"]))
    same = [row for row in correct if row["same_length"]]
    figures = {
        "chosen_words": _ratio(pairs, chosen, lambda r: 1, samples),
        "rejected_words": _ratio(pairs, rejected, lambda r: 1, samples),
        "length_ratio": _ratio(pairs, chosen, rejected, samples),
        "judge_accuracy": _ratio(correct, lambda r: r["correct"], lambda r: 1, samples),
        "judge_accuracy_same_length": _ratio(same, lambda r: r["correct"], lambda r: 1, samples),
        "context_accuracy": _ratio(contexts, lambda r: r["right"], lambda r: r["total"], samples),
    }
    return {name: estimate.to_json() for name, estimate in figures.items()}

"""Verdicts to figures. Nothing is dropped: what was not judged is counted by its reason, and bounds say what it hides.

Accuracy and score are over judged answers, with 95 % bootstrap intervals over videos; two evaluations are compared on
the answers that both judged.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from isrdpo_jax.evaluation.bootstrap import mean_interval, paired_difference
from isrdpo_jax.evaluation.protocols import Item
from isrdpo_jax.evaluation.summary import words
from isrdpo_jax.evaluation.verdicts import Verdict

Verdicts = Mapping[str, Verdict]  # by question id


def figures(items: Sequence[Item], verdicts: Verdicts, samples: int) -> dict[str, Any]:
    """How an evaluation went: counts by outcome, accuracy with bounds, mean score, words."""
    ordered = [verdicts[item.id] for item in items]
    videos = [item.video for item in items]
    correct, judged = _correct(ordered), _judged(ordered)
    scores, scored = _scores(ordered)
    said = np.array([words(item.prediction or "") for item in items], np.float64)
    answered = np.array([item.prediction is not None for item in items], np.float64)
    total, right = len(items), int(correct.sum())
    return {
        "total": total,
        "judged": int(judged.sum()),
        "outcomes": dict(sorted(Counter(verdict.outcome for verdict in ordered).items())),
        "accuracy": mean_interval(correct, judged, videos, samples, seed=0).to_json(),
        "accuracy_if_rest_wrong": right / total if total else None,
        "accuracy_if_rest_right": (right + total - int(judged.sum())) / total if total else None,
        "score": mean_interval(scores, scored, videos, samples, seed=0).to_json(),
        "words": mean_interval(said, answered, videos, samples, seed=0).to_json(),
        "cut_answers": sum(item.is_cut for item in items),
    }


def compare(videos: Mapping[str, str], ours: Verdicts, theirs: Verdicts, samples: int) -> dict[str, Any]:
    """What `ours` exceeds `theirs` by, on the questions that both judged, joined by id.

    Args:
        videos: the video of every question.

    Returns:
        {"both", "agreement", "turned_right", "turned_wrong", "accuracy", "score"}; the last two are differences, whose
        `count` is a number of videos.
    """
    ids = sorted(id for id in videos if id in ours and id in theirs and ours[id].ok and theirs[id].ok)
    left, right = [ours[id] for id in ids], [theirs[id] for id in ids]
    groups = [videos[id] for id in ids]
    one, other = _correct(left), _correct(right)
    ones = np.ones(len(ids))
    (left_scores, left_scored), (right_scores, right_scored) = _scores(left), _scores(right)
    scored = left_scored * right_scored
    score = paired_difference(left_scores * scored, scored, right_scores * scored, scored, groups, samples, seed=0)
    return {
        "both": len(ids),
        "agreement": float((one == other).mean()) if ids else None,
        "turned_right": int((one > other).sum()),
        "turned_wrong": int((one < other).sum()),
        "accuracy": paired_difference(one, ones, other, ones, groups, samples, seed=0).to_json(),
        "score": score.to_json(),
    }


def _correct(verdicts: Sequence[Verdict]) -> np.ndarray:
    return np.array([bool(verdict.ok and verdict.correct) for verdict in verdicts], np.float64)


def _judged(verdicts: Sequence[Verdict]) -> np.ndarray:
    return np.array([verdict.ok for verdict in verdicts], np.float64)


def _scores(verdicts: Sequence[Verdict]) -> tuple[np.ndarray, np.ndarray]:
    """Scores, 0 where there is none, and whether there is one."""
    scores = [verdict.score if verdict.ok else None for verdict in verdicts]
    return np.array([score or 0 for score in scores], np.float64), np.array([s is not None for s in scores], np.float64)

"""The judge against the truth, on the pairs that it judged. It never sees the truth; only this file does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from isrdpo_jax.data.shapes_world import language

Row = dict[str, Any]
Truths = Mapping[str, Mapping[str, Any] | None]  # by video id


def judged_correctly(responses: Sequence[Row], judgements: Sequence[Row], truths: Truths) -> list[Row]:
    """One row per verdict on a pair whose responses truly differ: {"video", "correct", "same_length"}.

    What the truth prefers is `language.preference`'s to say.
    """
    verdicts = {row["id"]: row["verdict"] for row in judgements}
    rows = []
    for row in responses:
        truth, verdict = truths[row["video"]], verdicts[row["id"]]
        if truth is None or verdict is None:
            continue
        texts = [one["text"] for one in row["responses"]]
        better = language.better_response(texts, row["question"], truth)
        if better is not None:
            same_length = len(texts[0].split()) == len(texts[1].split())
            rows.append({"video": row["video"], "correct": better == verdict, "same_length": same_length})
    return rows


def descriptions_right(descriptions: Sequence[Row], truths: Truths) -> list[Row]:
    """How much of each c_t is true: {"video", "right", "total"}."""
    rows = []
    for row in descriptions:
        truth = truths[row["video"]]
        if truth is not None:
            right, total = language.grade_description(row["text"], truth)
            rows.append({"video": row["video"], "right": right, "total": total})
    return rows

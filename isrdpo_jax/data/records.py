"""The records that data sets deliver: one per video, with its questions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Question:
    """A question about a video.

    Attributes:
        answer: a reference answer; preference training ignores it.
        caption: what others say of the video; only a judge of held-out answers sees it, never a policy.
    """

    id: str
    text: str
    answer: str | None = None
    caption: str | None = None


@dataclass(frozen=True)
class SftRow:
    """A labelled row for supervised training.

    Attributes:
        kind: what the row teaches; the mixture of a training phase names kinds.
        prompt: the user turn.
        response: the target.
        step_labels: process labels (character offset just behind a word of `prompt`, "yes" or "no").
    """

    kind: str
    prompt: str
    response: str
    step_labels: tuple[tuple[int, str], ...] = ()


@dataclass(frozen=True)
class Video:
    """A decoded video with everything that is known about it.

    Attributes:
        id: unique within the data set.
        frames: uint8 [t, H, W, 3], RGB.
        questions: at least one.
        truth: ground truth (JSON), if the data set has one; only evaluation and supervised rows see it.
        sft_rows: labelled rows, if the split is for supervised training.
    """

    id: str
    frames: np.ndarray
    questions: tuple[Question, ...]
    truth: dict | None
    sft_rows: tuple[SftRow, ...]

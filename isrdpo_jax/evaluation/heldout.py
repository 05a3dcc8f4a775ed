"""The questions of a held-out split, and answers joined to them by id."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from isrdpo_jax.data.loader import VideoSource
from isrdpo_jax.data.records import Question
from isrdpo_jax.errors import DataError
from isrdpo_jax.evaluation.protocols import Item


@dataclass(frozen=True)
class Heldout:
    """All that is known of a split but for the frames.

    Attributes:
        questions: by the video's place in the source.
        videos: the ids of the videos, in the order of the source.
        truths: by video id, where the data set has one.
    """

    questions: tuple[tuple[Question, ...], ...]
    videos: tuple[str, ...]
    truths: Mapping[str, Mapping[str, Any]]

    @property
    def asked(self) -> list[list[str]]:
        """The ids of the questions about each video."""
        return [[question.id for question in row] for row in self.questions]


def read_heldout(source: VideoSource) -> Heldout:
    """Reads a split once; one video's frames are in memory at a time."""
    questions: list[tuple[Question, ...]] = []
    truths: dict[str, Mapping[str, Any]] = {}
    for video in source:
        questions.append(video.questions)
        if video.truth is not None:
            truths[video.id] = video.truth
    return Heldout(tuple(questions), tuple(source.ids), truths)


def join(heldout: Heldout, answers: Iterable[Mapping[str, Any]], where: str) -> list[Item]:
    """One item per question of the split, in its order; a question that nobody answered has no prediction.

    Raises:
        DataError: an answer is to a question that the split does not have.
    """
    texts = {row["id"]: row["text"] for row in answers}
    items = [
        Item(question.id, video, question.text, question.answer, question.caption, texts.pop(question.id, None))
        for video, questions in zip(heldout.videos, heldout.questions, strict=True)
        for question in questions
    ]
    if texts:
        raise DataError(
            f"{where}: {len(texts)} answers have ids that the evaluation split does not know, such as "
            f"{min(texts)!r}; they belong to other data (see data.* in the config)."
        )
    return items

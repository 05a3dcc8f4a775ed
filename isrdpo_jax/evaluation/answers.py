"""What a policy says about held-out videos: greedy answers and fresh descriptions, graded where truth is known."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from isrdpo_jax.data.loader import VideoSource
from isrdpo_jax.data.records import Question, Video
from isrdpo_jax.data.shapes_world import language
from isrdpo_jax.schema import DescribeConfig, EvaluationConfig
from isrdpo_jax.stages.collect import batch_ranges
from isrdpo_jax.stages.engine import Completion, Decoding, Policy, complete, encode_frames, open_prefixes

Row = dict[str, Any]


def ask_heldout(
    policy: Policy,
    source: VideoSource,
    evaluation: EvaluationConfig,
    describe: DescribeConfig,
    *,
    after_batch: Callable[[], None],
) -> tuple[list[Row], list[Row]]:
    """Greedy answers to every question and a description of every video.

    Returns:
        Rows of answers and of descriptions; each has a `grade` where the data set knows the truth.
    """
    answers: list[Row] = []
    descriptions: list[Row] = []
    places = max(len(video.questions) for video in source)
    for batch in batch_ranges(len(source), evaluation.batch_videos):
        videos = [source[i] for i in batch]
        padded: list[Video | None] = [*videos, *[None] * (evaluation.batch_videos - len(videos))]
        prefixes = open_prefixes(policy, encode_frames(policy, [(video or videos[-1]).frames for video in padded]))
        asked: list[list[Question | None]] = [
            [*(video.questions if video else ()), *[None] * places][:places] for video in padded
        ]
        said = complete(
            policy,
            prefixes,
            [[policy.prompts.answer(q.text) if q else None for q in row] for row in asked],
            [[q.id if q else "" for q in row] for row in asked],
            [[0] * places] * len(asked),
            Decoding(evaluation.max_new_tokens, 0.0),
            purpose="evaluate",
            seed=0,
            iteration=0,
        )
        told = complete(
            policy,
            prefixes,
            [[policy.prompts.describe(None) if video else None] for video in padded],
            [[video.id if video else ""] for video in padded],
            [[0]] * len(padded),
            Decoding(describe.max_new_tokens, 0.0),
            purpose="evaluate",
            seed=0,
            iteration=0,
        )
        for video, questions, row, (description,) in zip(padded, asked, said, told, strict=True):
            if video is None or description is None:
                continue
            answers += [
                answer_row(video, question, answer)
                for question, answer in zip(questions, row, strict=True)
                if question and answer
            ]
            descriptions.append(description_row(video, description))
        after_batch()
    return answers, descriptions


def answer_row(video: Video, question: Question, answer: Completion) -> Row:
    row = {"id": question.id, "video": video.id, "question": question.text, **_said(answer)}
    if video.truth is not None:
        row["grade"] = grade(answer.text, question.text, video.truth)
    return row


def description_row(video: Video, description: Completion) -> Row:
    row = {"video": video.id, **_said(description)}
    if video.truth is not None:
        right, total = language.grade_description(description.text, video.truth)
        row["grade"] = {"right": right, "total": total}
    return row


def grade(text: str, question: str, truth: Mapping[str, Any]) -> Row:
    """An answer's grade in the embedded world, as JSON."""
    return asdict(language.grade(text, question, truth))


def _said(completion: Completion) -> Row:
    return {"text": completion.text, "tokens": list(completion.tokens), "finish": completion.finish}

"""What a policy says about held-out videos: greedy answers and fresh descriptions, graded where truth is known."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from isrdpo_jax.data.loader import VideoSource
from isrdpo_jax.data.records import Question, Video
from isrdpo_jax.data.shapes_world import language
from isrdpo_jax.models.kv_cache import KVCache
from isrdpo_jax.runs.processes import gather
from isrdpo_jax.schema import DescribeConfig, EvaluationConfig
from isrdpo_jax.stages.collect import batch_ranges, frames_of, own_videos
from isrdpo_jax.stages.engine import Completion, Decoding, Policy, complete, encode_frames, open_prefixes
from isrdpo_jax.stages.shares import share_of

Row = dict[str, Any]


def ask_heldout(
    policy: Policy,
    source: VideoSource,
    evaluation: EvaluationConfig,
    describe: DescribeConfig,
    *,
    after_batch: Callable[[], None],
) -> tuple[list[Row], list[Row]]:
    """Greedy answers to every question and a description of every video, each from the process that has the video.

    Returns:
        Rows of answers and of descriptions, of all processes; each has a `grade` where the data set knows the truth.
    """
    answers: list[Row] = []
    descriptions: list[Row] = []
    share = share_of(policy.mesh, evaluation.batch_videos)
    for batch in batch_ranges(len(source), evaluation.batch_videos):
        videos = own_videos(source, batch, share)
        padded: list[Video | None] = [*videos, *[None] * (len(share.rows) - len(videos))]
        written = {video.id for video, writes in zip(videos, share.writes, strict=False) if writes}
        prefixes = open_prefixes(policy, encode_frames(policy, frames_of(padded, policy)))
        said = answer_questions(policy, prefixes, padded, source.most_questions, evaluation.max_new_tokens)
        answers += [row for row in said if row["video"] in written]
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
        descriptions += [
            description_row(video, description)
            for video, (description,) in zip(padded, told, strict=True)
            if video and description and video.id in written
        ]
        after_batch()
    return of_all_processes(answers), of_all_processes(descriptions)


def of_all_processes(rows: list[Row]) -> list[Row]:
    """The rows of all processes, in the order of the records."""
    return sorted((row for some in gather(rows) for row in some), key=lambda row: row["video"])


def answer_questions(
    policy: Policy, prefixes: KVCache, videos: Sequence[Video | None], places: int, max_new_tokens: int
) -> list[Row]:
    """Greedy answers to all questions of a batch of videos, each behind its prefix; None marks an empty place.

    Args:
        places: for questions per video (the data set's maximum), so that all batches have one shape.
    """
    asked: list[list[Question | None]] = [
        [*(video.questions if video else ()), *[None] * places][:places] for video in videos
    ]
    said = complete(
        policy,
        prefixes,
        [[policy.prompts.answer(q.text) if q else None for q in row] for row in asked],
        [[q.id if q else "" for q in row] for row in asked],
        [[0] * places] * len(asked),
        Decoding(max_new_tokens, 0.0),
        purpose="evaluate",
        seed=0,
        iteration=0,
    )
    return [
        answer_row(video, question, answer)
        for video, questions, row in zip(videos, asked, said, strict=True)
        for question, answer in zip(questions, row, strict=True)
        if video and question and answer
    ]


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

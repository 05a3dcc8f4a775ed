"""What a policy says about held-out videos: greedy answers and fresh descriptions, graded where truth is known."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from isrdpo_jax.data.feature_cache import FeatureCache
from isrdpo_jax.data.loader import VideoSource
from isrdpo_jax.data.records import Question, Video
from isrdpo_jax.data.shapes_world import language
from isrdpo_jax.runs.processes import gather
from isrdpo_jax.schema import Config, DescribeConfig, EvaluationConfig
from isrdpo_jax.stages.collect import batch_ranges, in_batches
from isrdpo_jax.stages.dialogue import Completion, Decoding, Dialogue, Say, Sight
from isrdpo_jax.stages.engine import Engine
from isrdpo_jax.stages.policy import Policy

Row = dict[str, Any]


def answering(evaluation: EvaluationConfig) -> Decoding:
    """How held-out questions are answered."""
    return Decoding(evaluation.max_new_tokens, 0.0)


def describing(describe: DescribeConfig) -> Decoding:
    """How held-out videos are described."""
    return Decoding(describe.max_new_tokens, 0.0)


def heldout_engine(policy: Policy, config: Config, features: FeatureCache | None = None) -> Engine:
    """An engine that answers held-out questions and describes held-out videos."""
    said = [answering(config.evaluation), describing(config.describe)]
    return Engine(policy, config.collect, said, features=features)


def ask_heldout(
    engine: Engine,
    source: VideoSource,
    config: Config,
    *,
    between: Callable[[], None],
    after_batch: Callable[[], None],
) -> tuple[list[Row], list[Row]]:
    """Greedy answers to every question and a description of every video, each from the process that has the video.

    Args:
        between: called in all processes alike, behind every program. after_batch: behind every batch of this process.

    Returns:
        Rows of answers and of descriptions, of all processes; each has a `grade` where the data set knows the truth.
    """
    answers: list[Row] = []
    descriptions: list[Row] = []

    def visit(i: int) -> tuple[Dialogue, Sight]:
        video = source[i]
        return _interview(engine.policy, video, config), Sight(video.frames, video.id)

    batches = dict(enumerate(batch_ranges(len(source), config.collect.batch_videos)))
    for _, told in in_batches(engine, batches, config.collect.batch_videos, visit, between):
        for answered, description in told:
            answers += answered
            descriptions.append(description)
        after_batch()
    return of_all_processes(answers), of_all_processes(descriptions)


def _interview(policy: Policy, video: Video, config: Config) -> Dialogue:
    """The rows of all answers, and that of the description."""
    describe = Say(policy.prompts.describe(None), video.id, describing(config.describe), "evaluate")
    *said, description = yield [*say_answers(policy, video, config.evaluation), describe]
    return answer_rows(video, said), description_row(video, description)


def say_answers(policy: Policy, video: Video, evaluation: EvaluationConfig) -> list[Say]:
    """All questions about a video; part of a dialogue."""
    how = answering(evaluation)
    return [Say(policy.prompts.answer(question.text), question.id, how, "evaluate") for question in video.questions]


def answer_rows(video: Video, said: Sequence[Completion]) -> list[Row]:
    return [answer_row(video, question, answer) for question, answer in zip(video.questions, said, strict=True)]


def of_all_processes(rows: list[Row]) -> list[Row]:
    """The rows of all processes, in the order of the records."""
    return sorted((row for some in gather(rows) for row in some), key=lambda row: row["video"])


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

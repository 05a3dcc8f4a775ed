"""Collect: a dialogue with the policy about every video. It answers twice, describes, and judges, behind one prefix.

The unit that is written is a batch of videos in the order of the records. What a record is told depends on the record
alone, so that a resumed run gives the same. A batch is done when its three parts are on disk; the judgements come last.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from isrdpo_jax.data.feature_cache import FeatureCache
from isrdpo_jax.data.loader import VideoSource
from isrdpo_jax.data.records import Question, Video
from isrdpo_jax.data.shapes_world import language
from isrdpo_jax.errors import DataError
from isrdpo_jax.runs.atomic import write_jsonl
from isrdpo_jax.runs.layout import IterationLayout
from isrdpo_jax.schema import Config, DescribeConfig, JudgeConfig, SamplingConfig
from isrdpo_jax.stages.dialogue import Completion, Decoding, Dialogue, Look, Say, Sight, Weigh
from isrdpo_jax.stages.engine import Engine
from isrdpo_jax.stages.judge import (
    Case,
    Judgement,
    block,
    both_orders,
    each_alone,
    judge_by_coin,
    judge_by_letters,
    judge_by_rubric,
    judge_by_text,
    judge_by_truth,
)
from isrdpo_jax.stages.parts import discard_unfinished, finished, read_parts, wait_for_all
from isrdpo_jax.stages.policy import Policy
from isrdpo_jax.stages.shares import share_of

RESPONSES = 2
VERDICT_TOKENS = 8  # a generated verdict is a letter; what does not come to the point is invalid

Row = dict[str, Any]
Videos = VideoSource | Sequence[Video]


@dataclass(frozen=True)
class Rows:
    """What becomes of some videos, as it is written."""

    responses: list[Row] = field(default_factory=list)
    descriptions: list[Row] = field(default_factory=list)
    judgements: list[Row] = field(default_factory=list)


def batch_ranges(videos: int, size: int) -> list[range]:
    """Which videos each batch holds."""
    return [range(start, min(start + size, videos)) for start in range(0, videos, size)]


def responding(sampling: SamplingConfig) -> Decoding:
    """How a response is drawn."""
    return Decoding(
        sampling.max_new_tokens,
        sampling.temperature,
        sampling.top_p,
        sampling.top_k,
        sampling.min_p,
        sampling.repetition_penalty,
        sampling.stop,
    )


def describing(describe: DescribeConfig) -> Decoding:
    """How a description is drawn."""
    return Decoding(describe.max_new_tokens, describe.temperature, describe.top_p)


VERDICT = Decoding(VERDICT_TOKENS, 0.0)


def decodings(config: Config) -> list[Decoding]:
    """How all that is said in a dialogue is drawn."""
    said = [responding(config.sampling)]
    if config.judge.describes:
        said.append(describing(config.describe))
    if config.judge.mode == "text":
        said.append(VERDICT)
    return said


def collect_engine(policy: Policy, config: Config, iteration: int, features: FeatureCache | None = None) -> Engine:
    """An engine for the dialogues of an iteration."""
    said = decodings(config)
    return Engine(policy, config.collect, said, seed=config.run.seed, iteration=iteration, features=features)


def collect(
    engine: Engine,
    source: Videos,
    batches: Mapping[int, range],
    config: Config,
    *,
    previous: Mapping[str, str],
    between: Callable[[], None] = lambda: None,
) -> Iterator[tuple[int, Rows]]:
    """Number and rows of each batch, as far as this process has them, when all its videos are done.

    Args:
        batches: those that are to be done, by their numbers.
        previous: c_{t-1} by video id; a video without one is described afresh.
        between: called in all processes alike, behind every program.
    """
    check_judged_video(source, config.judge)

    def visit(i: int) -> tuple[Dialogue, Sight]:
        video = source[i]
        talk = interview(engine.policy, source, i, video, config, previous.get(video.id))
        return talk, Sight(video.frames, video.id)

    for number, rows in in_batches(engine, batches, config.collect.batch_videos, visit, between):
        yield number, Rows(*([row for one in rows for row in getattr(one, kind)] for kind in vars(Rows())))


def in_batches(
    engine: Engine,
    batches: Mapping[int, range],
    size: int,
    visit: Callable[[int], tuple[Dialogue, Sight]],
    between: Callable[[], None],
) -> Iterator[tuple[int, list[Any]]]:
    """The results of a dialogue about every video, batch by batch as they are done, in the order of the videos.

    A process has its share of every batch, and gets the results of those of which it writes the rows.

    Args:
        batches: places of videos in their source, by the batch's number; up to `size` each.
        visit: from a place to the dialogue about the video there, and what there is to see.
    """
    share = share_of(engine.policy.mesh, size)
    mine = [
        (number, batch[row], bool(writes))
        for number, batch in batches.items()
        for row, writes in zip(share.rows, share.writes, strict=True)
        if row < len(batch)
    ]
    left = Counter(number for number, _, _ in mine)
    made: dict[int, dict[int, Any]] = {number: {} for number in left}
    for visited, result in engine.converse([partial(visit, i) for _, i, _ in mine], between):
        number, i, writes = mine[visited]
        if writes:
            made[number][i] = result
        left[number] -= 1
        if not left[number]:
            yield number, [one for _, one in sorted(made.pop(number).items())]


def check_judged_video(source: Videos, judge: JudgeConfig) -> None:
    """Raises:
    DataError: the judge is to be shown another video, and there is none.
    """
    if judge.video == "shuffled" and len(source) < 2:
        raise DataError("judge.video=shuffled shows the judge the next video, and the data set has only one.")


def look_elsewhere(source: Videos, i: int, video: Video, judge: JudgeConfig) -> Iterator[Look]:
    """The part of a dialogue in which the judge is shown what it is to see instead of the video, if anything."""
    if judge.video == "blank":
        yield Look(Sight(np.zeros_like(video.frames)))
    elif judge.video == "shuffled":
        other = source[(i + 1) % len(source)]
        yield Look(Sight(other.frames, other.id))


def interview(policy: Policy, source: Videos, i: int, video: Video, config: Config, previous: str | None) -> Dialogue:
    """Two responses to every question and a description, all at once; then the verdicts.

    Args:
        i: the place of the video in its source. previous: c_{t-1} of this video.

    Returns:
        `Rows`.
    """
    ask, drawn = policy.prompts.answer, responding(config.sampling)
    responses = [
        Say(ask(question.text), question.id, drawn, "respond", sample)
        for question in video.questions
        for sample in range(RESPONSES)
    ]
    described: Completion | None = None
    if config.judge.describes:
        back = previous if config.judge.context == "retrospective" else None
        *said, described = yield [*responses, say_description(policy, video, config, back)]
    else:
        said = yield responses
    context = true_context(video) if config.judge.context == "truth" else described
    pairs = [(said[RESPONSES * j], said[RESPONSES * j + 1]) for j in range(len(video.questions))]
    yield from look_elsewhere(source, i, video, config.judge)
    cases = [make_case(question, pair, context, config) for question, pair in zip(video.questions, pairs, strict=True)]
    judgements = yield from judge(policy, video, cases, config.judge)
    return Rows(
        [response_row(video, question, pair) for question, pair in zip(video.questions, pairs, strict=True)],
        [] if described is None else [description_row(video, described, previous)],
        [
            judgement_row(video, question, case.context, judgement)
            for question, case, judgement in zip(video.questions, cases, judgements, strict=True)
        ],
    )


def say_description(policy: Policy, video: Video, config: Config, previous: str | None) -> Say:
    """c_t ~ π_t(· | V, c_{t-1}); an empty c_{t-1} is as none."""
    return Say(policy.prompts.describe(previous or None), video.id, describing(config.describe), "describe")


def true_context(video: Video) -> Completion:
    """What an observer who knows the scene would say of it."""
    return Completion(language.describe(ground_truth(video)), (), "stop")


def ground_truth(video: Video) -> dict[str, Any]:
    """Raises:
    DataError: the data set has none.
    """
    if video.truth is None:
        raise DataError(
            f"{video.id}: judge.mode=truth and judge.context=truth need a data set with ground truth (shapes_world)."
        )
    return video.truth


def make_case(
    question: Question, pair: tuple[Completion, Completion], context: Completion | None, config: Config
) -> Case:
    texts = (pair[0].text, pair[1].text)
    blocked = block(texts, [one.finish for one in pair], config.sampling.keep_unfinished)
    if blocked is None and context is not None and context.finish == "too_long":
        blocked = "no_context"
    return Case(question.text, texts, context.text if context else None, blocked)


def judge(
    policy: Policy, video: Video, cases: Sequence[Case], config: JudgeConfig
) -> Generator[Any, list[Any], list[Judgement]]:
    """Verdicts on all pairs of a video, two turns each where the policy is asked; part of a dialogue."""
    if not config.asks_policy:
        return [_known(config, video, question, case) for question, case in zip(video.questions, cases, strict=True)]
    turns_of = each_alone if config.mode == "rubric" else both_orders
    turns = [turns_of(case, policy.prompts) if case.blocked is None else () for case in cases]
    asked = [
        _ask_verdict(policy, turn, question.id, order, config)
        for question, both in zip(video.questions, turns, strict=True)
        for order, turn in enumerate(both)
    ]
    said = iter((yield asked) if asked else [])

    def one(case: Case) -> Judgement:
        if case.blocked is not None:
            return Judgement(None, case.blocked)
        first, second = next(said), next(said)
        if config.mode == "text":
            if "too_long" in (first.finish, second.finish):
                return Judgement(None, "too_long")
            return judge_by_text((first.text, second.text), config)
        if first is None or second is None:
            return Judgement(None, "too_long")
        return (judge_by_rubric if config.mode == "rubric" else judge_by_letters)((first, second), config)

    return [one(case) for case in cases]


def _known(config: JudgeConfig, video: Video, question: Question, case: Case) -> Judgement:
    """A verdict that asks no policy."""
    if case.blocked is not None:
        return Judgement(None, case.blocked)
    return judge_by_truth(case, ground_truth(video)) if config.mode == "truth" else judge_by_coin(case, question.id)


def _ask_verdict(policy: Policy, turn: str, question: str, order: int, config: JudgeConfig) -> Say | Weigh:
    if config.mode == "text":
        return Say(turn, question, VERDICT, "judge", order)
    if config.mode == "letters":
        return Weigh(turn, policy.tokenizer.letter_ids)
    begun, scores = policy.tokenizer.score_ids
    return Weigh(turn, scores, begun)


def response_row(video: Video, question: Question, pair: Sequence[Completion]) -> Row:
    responses = [{"text": one.text, "tokens": list(one.tokens), "finish": one.finish} for one in pair]
    return {"id": question.id, "video": video.id, "question": question.text, "responses": responses}


def description_row(video: Video, context: Completion, previous: str | None) -> Row:
    facts = {"text": context.text, "tokens": list(context.tokens), "finish": context.finish}
    return {"video": video.id, **facts, "previous": previous}


def judgement_row(video: Video, question: Question, context: str | None, judgement: Judgement) -> Row:
    row = {
        "id": question.id,
        "video": video.id,
        "verdict": judgement.verdict,
        "reason": judgement.reason,
        "log_odds": judgement.log_odds and list(judgement.log_odds),
        "margin": judgement.margin,
        "context": context,
    }
    more = {"texts": judgement.texts, "scores": judgement.scores, "said_score": judgement.said_score}
    return row | {name: list(value) for name, value in more.items() if value is not None}


def write_batch(layout: IterationLayout, process: int, number: int, rows: Rows) -> None:
    """Writes the three parts; the judgements, which say that the batch is done, come last."""
    write_jsonl(layout.part("responses", process, number), rows.responses)
    write_jsonl(layout.part("descriptions", process, number), rows.descriptions)
    write_jsonl(layout.part("judgements", process, number), rows.judgements)


def begin(layout: IterationLayout, videos: Sequence[Collection[str]]) -> list[bool]:
    """Which batches are done, after what is left of the others has been removed.

    Args:
        videos: the ids of each batch.
    """
    done = batches_done(layout, videos)
    discard_unfinished(layout, ["judgements", "responses", "descriptions"], done)
    return done


def finish(layout: IterationLayout, videos: Sequence[Collection[str]]) -> dict[str, int]:
    """The counts, when all processes have written all their parts."""
    wait_for_all(lambda: batches_done(layout, videos), layout.judgements)
    return counts(layout)


def batches_done(layout: IterationLayout, videos: Sequence[Collection[str]]) -> list[bool]:
    """Whether all videos of each batch have been judged."""
    return finished(layout, "judgements", "video", videos)


def counts(layout: IterationLayout) -> dict[str, int]:
    """How the collect went: questions, videos, verdicts by reason, unfinished responses, cut descriptions."""
    responses = read_parts(layout, "responses")
    descriptions = read_parts(layout, "descriptions")
    judgements = read_parts(layout, "judgements")
    reasons = Counter(f"judged/{row['reason']}" for row in judgements)
    return {
        "questions": len(responses),
        "descriptions": len(descriptions),
        "descriptions/cut": sum(row["finish"] == "length" for row in descriptions),
        "responses/unfinished": sum(one["finish"] == "length" for row in responses for one in row["responses"]),
        **dict(sorted(reasons.items())),
    }

"""Collect: for a batch of videos at a time, answer twice, describe, and judge, all behind one prefix per video.

Batches follow the order of the records, and their shapes the configuration, never what is left to do: a resumed run
computes the same tokens. A batch is done when its three parts are on disk; the judgements are written last.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from isrdpo_jax.data.loader import VideoSource
from isrdpo_jax.data.records import Question, Video
from isrdpo_jax.errors import DataError
from isrdpo_jax.models.kv_cache import KVCache
from isrdpo_jax.runs.atomic import write_jsonl
from isrdpo_jax.runs.layout import IterationLayout
from isrdpo_jax.runs.processes import most
from isrdpo_jax.schema import Config, JudgeConfig
from isrdpo_jax.stages.engine import (
    Completion,
    Decoding,
    Policy,
    complete,
    encode_frames,
    letter_logprobs,
    open_prefixes,
    score_logprobs,
)
from isrdpo_jax.stages.judge import Case, Judgement, block, judge_by_letters, judge_by_rubric, judge_by_text
from isrdpo_jax.stages.parts import discard_unfinished, finished, read_parts, wait_for_all
from isrdpo_jax.stages.shares import Share, share_of

RESPONSES = 2
VERDICT_TOKENS = 8  # a generated verdict is a letter; what does not come to the point is invalid

Row = dict[str, Any]


@dataclass(frozen=True)
class Batch:
    """The rows of one batch, as they are written."""

    responses: list[Row]
    descriptions: list[Row]
    judgements: list[Row]


def batch_ranges(videos: int, size: int) -> list[range]:
    """Which videos each batch holds."""
    return [range(start, min(start + size, videos)) for start in range(0, videos, size)]


def collect_batch(
    policy: Policy,
    videos: Sequence[Video],
    config: Config,
    *,
    iteration: int,
    questions: int,
    previous: Mapping[str, str],
) -> Batch:
    """Respond, describe and judge for up to `collect.batch_videos` videos.

    Args:
        videos: those that this process has (`stages.shares`); the rest of its places is empty.
        questions: places for questions per video (the data set's maximum), so that all batches have one shape.
        previous: c_{t-1} by video id; a video without one is described afresh.
    """
    share = share_of(policy.mesh, config.collect.batch_videos)
    padded = [*videos, *[None] * (len(share.rows) - len(videos))]
    frames = frames_of(padded, policy)
    features = encode_frames(policy, frames)
    prefixes = open_prefixes(policy, features)
    asked = [[*(video.questions if video else ()), *[None] * questions][:questions] for video in padded]
    how = {"seed": config.run.seed, "iteration": iteration}

    answers = respond(policy, prefixes, asked, config, **how)
    contexts = describe(policy, prefixes, padded, config, previous=previous, **how)
    told = [context.text if context and config.judge.context != "none" else None for context in contexts]
    count = most(int(share.rows[len(videos) - 1]) + 1 if videos else 0)
    seen = judged_prefixes(policy, prefixes, features, frames, count, config.judge)
    cases = [
        [
            make_case(policy, question, pair, context, config) if question and pair else None
            for question, pair in zip(row, pairs, strict=True)
        ]
        for row, pairs, context in zip(asked, answers, told, strict=True)
    ]
    judgements = judge(policy, seen, cases, asked, config, **how)

    flat = [
        (video, question, pair, context, judgement)
        for video, writes, row, pairs, context, judged in zip(
            padded, share.writes, asked, answers, told, judgements, strict=True
        )
        for question, pair, judgement in zip(row, pairs, judged, strict=True)
        if video and writes and question and pair and judgement
    ]
    return Batch(
        [response_row(video, question, pair) for video, question, pair, _, _ in flat],
        [
            description_row(video, context, previous.get(video.id))
            for video, writes, context in zip(padded, share.writes, contexts, strict=True)
            if video and writes and context
        ],
        [judgement_row(video, question, context, judgement) for video, question, _, context, judgement in flat],
    )


def own_videos(source: VideoSource, batch: range, share: Share) -> list[Video]:
    """The videos of a batch that this process has."""
    return [source[batch[row]] for row in share.rows if row < len(batch)]


def frames_of(places: Sequence[Video | None], policy: Policy) -> list[np.ndarray]:
    """uint8 frames [t, H, W, 3] of every place; empty ones are black."""
    vision = policy.config.vision
    black = np.zeros((vision.num_frames, vision.image_size, vision.image_size, 3), np.uint8)
    return [black if video is None else video.frames for video in places]


def respond(
    policy: Policy,
    prefixes: KVCache,
    asked: Sequence[Sequence[Question | None]],
    config: Config,
    *,
    seed: int,
    iteration: int,
) -> list[list[tuple[Completion, Completion] | None]]:
    """Two sampled responses to every question."""
    sampling = config.sampling
    out = complete(
        policy,
        prefixes,
        [[policy.prompts.answer(q.text) if q else None for q in row for _ in range(RESPONSES)] for row in asked],
        [[q.id if q else "" for q in row for _ in range(RESPONSES)] for row in asked],
        [[sample for _ in row for sample in range(RESPONSES)] for row in asked],
        Decoding(sampling.max_new_tokens, sampling.temperature, sampling.top_p, sampling.top_k),
        purpose="respond",
        seed=seed,
        iteration=iteration,
    )

    def pair(row: Sequence[Completion | None], j: int) -> tuple[Completion, Completion] | None:
        first, second = row[RESPONSES * j : RESPONSES * (j + 1)]
        return (first, second) if first and second else None

    return [[pair(row, j) for j in range(len(questions))] for questions, row in zip(asked, out, strict=True)]


def describe(
    policy: Policy,
    prefixes: KVCache,
    videos: Sequence[Video | None],
    config: Config,
    *,
    previous: Mapping[str, str],
    seed: int,
    iteration: int,
) -> list[Completion | None]:
    """One visual context per video, c_t ~ π_t(· | V, c_{t-1}); none where the judge is to see none."""
    if config.judge.context == "none":
        return [None] * len(videos)
    back = previous if config.judge.context == "retrospective" else {}
    options = config.describe
    out = complete(
        policy,
        prefixes,
        [[policy.prompts.describe(back.get(video.id) or None) if video else None] for video in videos],
        [[video.id if video else ""] for video in videos],
        [[0]] * len(videos),
        Decoding(options.max_new_tokens, options.temperature, options.top_p),
        purpose="describe",
        seed=seed,
        iteration=iteration,
    )
    return [row[0] for row in out]


def judged_prefixes(
    policy: Policy, prefixes: KVCache, features: jax.Array, frames: Sequence[np.ndarray], count: int, judge: JudgeConfig
) -> KVCache:
    """What the judge sees: the video, a black one, or the next video of the batch (controls)."""
    if judge.video == "true":
        return prefixes
    if judge.video == "blank":
        return open_prefixes(policy, encode_frames(policy, [np.zeros_like(one) for one in frames]))
    if count < 2:
        raise DataError("judge.video=shuffled needs at least two videos in every batch; change collect.batch_videos.")
    order = np.array([*np.roll(np.arange(count), -1), *range(count, len(features))])
    return open_prefixes(policy, jnp.take(features, order, axis=0))


def make_case(
    policy: Policy, question: Question, pair: tuple[Completion, Completion], context: str | None, config: Config
) -> Case:
    texts = (pair[0].text, pair[1].text)
    blocked = block(texts, [one.finish for one in pair], config.sampling.keep_unfinished)
    case = Case(question.text, texts, context, blocked)
    if blocked:
        return case
    room = policy.config.llama.max_positions - policy.prefix_length - VERDICT_TOKENS
    if config.judge.mode == "rubric":
        turns = [policy.prompts.rubric(question.text, text, context) for text in texts]
    else:
        turns = [policy.prompts.judge(question.text, *texts, context)]
    size = max(len(policy.tokenizer.encode_turn(turn)) for turn in turns)
    return case if size <= room else Case(question.text, texts, context, "too_long")


def judge(
    policy: Policy,
    prefixes: KVCache,
    cases: Sequence[Sequence[Case | None]],
    asked: Sequence[Sequence[Question | None]],
    config: Config,
    *,
    seed: int,
    iteration: int,
) -> list[list[Judgement | None]]:
    """Verdicts on all pairs, both orders, in the configured mode."""
    if config.judge.mode == "letters":
        return judge_by_letters(cases, policy.prompts, config.judge, partial(letter_logprobs, policy, prefixes))
    if config.judge.mode == "rubric":
        return judge_by_rubric(cases, policy.prompts, config.judge, partial(score_logprobs, policy, prefixes))
    ids = [[q.id if q else "" for _ in range(2) for q in row] for row in asked]
    orders = [[order for order in range(2) for _ in row] for row in asked]

    def ask(turns):
        greedy = Decoding(VERDICT_TOKENS, 0.0)
        return complete(policy, prefixes, turns, ids, orders, greedy, purpose="judge", seed=seed, iteration=iteration)

    return judge_by_text(cases, policy.prompts, config.judge, ask)


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


def write_batch(layout: IterationLayout, process: int, number: int, batch: Batch) -> None:
    """Writes the three parts; the judgements, which say that the batch is done, come last."""
    write_jsonl(layout.part("responses", process, number), batch.responses)
    write_jsonl(layout.part("descriptions", process, number), batch.descriptions)
    write_jsonl(layout.part("judgements", process, number), batch.judgements)


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

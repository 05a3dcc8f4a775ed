"""Which of two responses is better: asked in both orders, or for a score of each; decided from the answers alone.

A judge is a function from user turns to what it says, so that the rules can be proven with judges that always say A,
always say B, or know the truth.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from isrdpo_jax.data.prompts import Prompts
from isrdpo_jax.data.tokens import SCORES
from isrdpo_jax.schema import JudgeConfig
from isrdpo_jax.stages.engine import Completion

Reason = Literal[
    "ok", "tie", "inconsistent", "invalid", "identical", "unfinished", "empty", "too_long"
]  # why a question gives a pair, or none
Turns = Sequence[Sequence[str | None]]
AskLetters = Callable[[Turns], np.ndarray]  # turns[b][r] -> log p(A), log p(B): float32[b, r, 2]
AskScores = Callable[[Turns], np.ndarray]  # turns[b][r] -> log p(score): float32[b, r, 5]
AskText = Callable[[Turns], Sequence[Sequence[Completion | None]]]

_VERDICT = re.compile(r"\(?([AB])\)?(?:[.,:;\n]|\s+is\b|$)")  # not the article: "A red circle moves." names no letter


@dataclass(frozen=True)
class Case:
    """One question to be judged. `blocked` says why it cannot give a pair, whatever the judge would say."""

    question: str
    responses: tuple[str, str]
    context: str | None
    blocked: Reason | None = None


@dataclass(frozen=True)
class Judgement:
    """A verdict and what it comes from.

    Attributes:
        verdict: the preferred response.
        log_odds: nats in favour of response 0, for the orders (0, 1) and (1, 0).
        margin: their mean; where scores were asked for, the difference of the two.
        texts: what a judge wrote.
        scores: of the two responses, points.
        said_score: the probability that the judge answers with a score at all, for each response.
    """

    verdict: int | None
    reason: Reason
    log_odds: tuple[float, float] | None = None
    margin: float | None = None
    texts: tuple[str, str] | None = None
    scores: tuple[float, float] | None = None
    said_score: tuple[float, float] | None = None


def block(texts: Sequence[str], finishes: Sequence[str], keep_unfinished: bool) -> Reason | None:
    """Why two responses give no pair before anybody judges them."""
    if not all(text.strip() for text in texts):
        return "empty"
    if texts[0] == texts[1]:
        return "identical"
    if "length" in finishes and not keep_unfinished:
        return "unfinished"
    return None


def both_orders(cases: Sequence[Sequence[Case | None]], prompts: Prompts) -> list[list[str | None]]:
    """User turns [b][2 q]: the order (0, 1) of every question of a video, then the order (1, 0)."""

    def turn(case: Case | None, first: int) -> str | None:
        if case is None or case.blocked:
            return None
        a, b = case.responses[first], case.responses[1 - first]
        return prompts.judge(case.question, a, b, case.context)

    return [[turn(case, first) for first in (0, 1) for case in row] for row in cases]


def judge_by_letters(
    cases: Sequence[Sequence[Case | None]], prompts: Prompts, config: JudgeConfig, ask: AskLetters
) -> list[list[Judgement | None]]:
    """Verdicts from the log-probs of the two letters."""
    logprobs = np.asarray(ask(both_orders(cases, prompts)), np.float64)
    a_minus_b = logprobs[..., 0] - logprobs[..., 1]
    questions = a_minus_b.shape[1] // 2

    def one(i: int, j: int, case: Case | None) -> Judgement | None:
        if case is None or case.blocked:
            return blocked(case)
        return decide((float(a_minus_b[i, j]), float(-a_minus_b[i, questions + j])), config)

    return [[one(i, j, case) for j, case in enumerate(row)] for i, row in enumerate(cases)]


def judge_by_text(
    cases: Sequence[Sequence[Case | None]], prompts: Prompts, config: JudgeConfig, ask: AskText
) -> list[list[Judgement | None]]:
    """Verdicts from generated text; what names neither letter is invalid, never a tie."""
    said = ask(both_orders(cases, prompts))
    questions = len(cases[0])

    def one(i: int, j: int, case: Case | None) -> Judgement | None:
        if case is None or case.blocked:
            return blocked(case)
        answers = said[i][j], said[i][questions + j]
        texts = (answers[0].text if answers[0] else "", answers[1].text if answers[1] else "")
        letters = [parse_verdict(text) for text in texts]
        if None in letters:
            return Judgement(None, "invalid", texts=texts)
        first, second = (1.0 if letter == "A" else -1.0 for letter in letters)
        judged = decide((first, -second), config)
        return Judgement(judged.verdict, judged.reason, judged.log_odds, judged.margin, texts)

    return [[one(i, j, case) for j, case in enumerate(row)] for i, row in enumerate(cases)]


def each_alone(cases: Sequence[Sequence[Case | None]], prompts: Prompts) -> list[list[str | None]]:
    """User turns [b][2 q]: response 0 of every question of a video, then response 1."""

    def turn(case: Case | None, which: int) -> str | None:
        if case is None or case.blocked:
            return None
        return prompts.rubric(case.question, case.responses[which], case.context)

    return [[turn(case, which) for which in (0, 1) for case in row] for row in cases]


def judge_by_rubric(
    cases: Sequence[Sequence[Case | None]], prompts: Prompts, config: JudgeConfig, ask: AskScores
) -> list[list[Judgement | None]]:
    """Verdicts from a score of each response by itself: the mean of 1 to 5 under the judge's distribution of scores.

    A mean has no need of sampling, and tells responses apart whose likeliest score is the same.
    """
    logprobs = np.asarray(ask(each_alone(cases, prompts)), np.float64)
    said = np.exp(logprobs)
    with np.errstate(invalid="ignore"):  # of what no score is likely to come, and of empty places
        shares = np.exp(logprobs - np.logaddexp.reduce(logprobs, axis=-1, keepdims=True))
    scores, mass = shares @ np.asarray(SCORES, np.float64), said.sum(-1)
    questions = scores.shape[1] // 2

    def one(i: int, j: int, case: Case | None) -> Judgement | None:
        if case is None or case.blocked:
            return blocked(case)
        pair = float(scores[i, j]), float(scores[i, questions + j])
        return decide_by_scores(pair, (float(mass[i, j]), float(mass[i, questions + j])), config)

    return [[one(i, j, case) for j, case in enumerate(row)] for i, row in enumerate(cases)]


def blocked(case: Case | None) -> Judgement | None:
    """What is known of a case without asking anybody: nothing of an empty place, the reason of a blocked one."""
    return None if case is None or case.blocked is None else Judgement(None, case.blocked)


def parse_verdict(text: str) -> Literal["A", "B"] | None:
    """The letter that a generated verdict begins with."""
    match = _VERDICT.match(text.strip())
    return None if match is None else "A" if match[1] == "A" else "B"


def decide(log_odds: tuple[float, float], config: JudgeConfig) -> Judgement:
    """The rule of the two orders: average, or drop where they disagree. A small margin is a tie, never a guess."""
    if not np.isfinite(log_odds).all():
        return Judgement(None, "invalid")
    margin = (log_odds[0] + log_odds[1]) / 2
    if config.inconsistent == "drop" and log_odds[0] * log_odds[1] <= 0:
        return Judgement(None, "inconsistent", log_odds, margin)
    if margin == 0 or abs(margin) < config.tie_margin:
        return Judgement(None, "tie", log_odds, margin)
    return Judgement(0 if margin > 0 else 1, "ok", log_odds, margin)


def decide_by_scores(scores: tuple[float, float], said_score: tuple[float, float], config: JudgeConfig) -> Judgement:
    """The rule of two scores: the higher one. A small difference is a tie, and what is no number is invalid."""
    if not np.isfinite(scores).all():
        return Judgement(None, "invalid")
    margin = scores[0] - scores[1]
    if margin == 0 or abs(margin) < config.tie_margin:
        return Judgement(None, "tie", None, margin, None, scores, said_score)
    return Judgement(0 if margin > 0 else 1, "ok", None, margin, None, scores, said_score)

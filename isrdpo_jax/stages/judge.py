"""Which of two responses is better: asked in both orders, or for a score of each; decided from the answers alone.

Whatever says the verdicts, the rules here decide from what was said alone, so that they can be proven with judges that
always say A, always say B, or know the truth.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from isrdpo_jax.data.prompts import Prompts
from isrdpo_jax.data.shapes_world import language
from isrdpo_jax.data.tokens import SCORES
from isrdpo_jax.schema import JudgeConfig

Reason = Literal[
    "ok", "tie", "inconsistent", "invalid", "identical", "unfinished", "empty", "too_long", "no_context"
]  # why a question gives a pair, or none

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
    if "too_long" in finishes:
        return "too_long"
    if not all(text.strip() for text in texts):
        return "empty"
    if texts[0] == texts[1]:
        return "identical"
    if "length" in finishes and not keep_unfinished:
        return "unfinished"
    return None


def both_orders(case: Case, prompts: Prompts) -> tuple[str, str]:
    """User turns that show the responses in the orders (0, 1) and (1, 0)."""
    first, second = case.responses
    return (
        prompts.judge(case.question, first, second, case.context),
        prompts.judge(case.question, second, first, case.context),
    )


def judge_by_letters(logprobs: Sequence[np.ndarray], config: JudgeConfig) -> Judgement:
    """The verdict from log p(A), log p(B) behind the turns of `both_orders`."""
    first, second = (float(one[0]) - float(one[1]) for one in logprobs)
    return decide((first, -second), config)


def judge_by_text(texts: tuple[str, str], config: JudgeConfig) -> Judgement:
    """The verdict from what was said behind the turns of `both_orders`; no letter is invalid, and never a tie."""
    letters = [parse_verdict(text) for text in texts]
    if None in letters:
        return Judgement(None, "invalid", texts=texts)
    first, second = (1.0 if letter == "A" else -1.0 for letter in letters)
    return replace(decide((first, -second), config), texts=texts)


def each_alone(case: Case, prompts: Prompts) -> tuple[str, str]:
    """User turns that ask for a score of response 0, and of response 1."""
    first, second = (prompts.rubric(case.question, response, case.context) for response in case.responses)
    return first, second


def judge_by_rubric(logprobs: Sequence[np.ndarray], config: JudgeConfig) -> Judgement:
    """The verdict from log p(1) … log p(5) behind the turns of `each_alone`: by the mean score.

    A mean has no need of sampling, and tells responses apart whose likeliest score is the same.
    """
    said = np.asarray(logprobs, np.float64)
    with np.errstate(invalid="ignore"):  # where no score is likely at all
        shares = np.exp(said - np.logaddexp.reduce(said, axis=-1, keepdims=True))
    first, second = (float(score) for score in shares @ np.asarray(SCORES, np.float64))
    mass = tuple(float(one) for one in np.exp(said).sum(-1))
    return decide_by_scores((first, second), (mass[0], mass[1]), config)


def judge_by_truth(case: Case, truth: language.Truth) -> Judgement:
    """The verdict of one who knows what the video shows: the ceiling of all judges."""
    better = language.better_response(case.responses, case.question, truth)
    return Judgement(better, "tie" if better is None else "ok", margin=0.0 if better is None else 1.0 - 2.0 * better)


def judge_by_coin(case: Case, question_id: str) -> Judgement:
    """A verdict that says nothing, the control: a coin that the record and both texts toss, so that a resume agrees."""
    verdict = hashlib.blake2b("\n".join([question_id, *case.responses]).encode()).digest()[0] & 1
    return Judgement(verdict, "ok", margin=1.0 - 2.0 * verdict)


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

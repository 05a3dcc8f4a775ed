"""Which of two responses is better: asked in both orders, decided from the two answers alone.

Whatever says the verdicts, the rules here decide from what was said alone, so that they can be proven with judges that
always say A, always say B, or know the truth.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from isrdpo_jax.data.prompts import Prompts
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
    """log_odds: nats in favour of response 0, for the orders (0, 1) and (1, 0). verdict: the preferred response."""

    verdict: int | None
    reason: Reason
    log_odds: tuple[float, float] | None = None
    margin: float | None = None
    texts: tuple[str, str] | None = None


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

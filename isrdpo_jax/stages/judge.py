"""Which of two responses is better: asked in both orders, decided from the two answers alone.

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
from isrdpo_jax.schema import JudgeConfig
from isrdpo_jax.stages.engine import Completion

Reason = Literal[
    "ok", "tie", "inconsistent", "invalid", "identical", "unfinished", "empty", "too_long"
]  # why a question gives a pair, or none
Turns = Sequence[Sequence[str | None]]
AskLetters = Callable[[Turns], np.ndarray]  # turns[b][r] -> log p(A), log p(B): float32[b, r, 2]
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
    """log_odds: nats in favour of response 0, for the orders (0, 1) and (1, 0). verdict: the preferred response."""

    verdict: int | None
    reason: Reason
    log_odds: tuple[float, float] | None = None
    margin: float | None = None
    texts: tuple[str, str] | None = None


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

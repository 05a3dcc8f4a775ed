"""Counts of one iteration: why questions gave no pair, how the judge behaves, how long the responses are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from isrdpo_jax.data.shapes_world.revision import Revision
from isrdpo_jax.report.load import Iteration, Judgement
from isrdpo_jax.report.retrospection import Rewriting
from isrdpo_jax.stages.tally import Tally

T = TypeVar("T", Rewriting, Revision)

REASONS = ("tie", "identical", "unfinished", "invalid", "inconsistent", "empty", "too_long", "no_context")


@dataclass(frozen=True)
class Share:
    """A share and its denominator; `value` is None where nothing was counted."""

    value: float | None
    count: int


@dataclass(frozen=True)
class PairCounts:
    """What became of an iteration's questions. `kept` is None while pairs are not built; `other` counts the rest."""

    questions: int
    kept: int | None
    reasons: dict[str, int]
    other: int


@dataclass(frozen=True)
class JudgePanel:
    """How the judge behaves.

    Attributes:
        flips: share of the pairs whose two orders prefer different responses.
        says_a: share of all orders that prefer the response shown as A; 0.5 is no position bias.
        longer_wins: share of the decided pairs of unequal length whose longer response (words) wins.
        ties: share of the judged pairs that end as ties.
        invalid: share of the judged pairs whose verdict could not be parsed.
        margin: mean |margin| of the pairs that have one: nats, or points of a rubric.
        right: share of the verdicts that are those of the truth, where one response is truly better.
    """

    judged: int
    flips: Share
    says_a: Share
    longer_wins: Share
    ties: Share
    invalid: Share
    margin: Share
    right: Share


@dataclass(frozen=True)
class Lengths:
    """Mean words of the pairs' two sides, their ratio, and how the descriptions fare (mean words, share cut)."""

    pairs: int
    chosen: float | None
    rejected: float | None
    description: Share
    cut: Share

    @property
    def ratio(self) -> float | None:
        """Chosen over rejected words."""
        return self.chosen / self.rejected if self.chosen is not None and self.rejected else None


@dataclass(frozen=True)
class Retrospection:
    """What the descriptions that saw one before made of it.

    Attributes:
        unchanged: share that uses the same words.
        rewriting: statements of all, by their text.
        revision: attributes stated by all, against the truth; None where nobody knows it.
    """

    descriptions: int
    unchanged: Share
    rewriting: Rewriting
    revision: Revision | None


def pair_counts(iteration: Iteration) -> PairCounts:
    """Counts per reason; they add up to the questions when `ok` verdicts all became pairs."""
    counts = Counter(judgement.reason for judgement in iteration.judgements)
    kept = None if iteration.pairs is None else len(iteration.pairs)
    reasons = {reason: counts.pop(reason, 0) for reason in REASONS}
    decided = counts.pop("ok", 0)
    lost = 0 if kept is None else max(decided - kept, 0)
    return PairCounts(len(iteration.judgements), kept, reasons, other=sum(counts.values()) + lost)


def judge_panel(judgements: Sequence[Judgement]) -> JudgePanel:
    """A judge's habits, over the questions that it was really asked."""
    judged = [j for j in judgements if j.log_odds or j.margin is not None or j.reason == "invalid"]
    both = [judgement.log_odds for judgement in judged if len(judgement.log_odds) == 2]
    decided = [(j.words, j.verdict) for j in judged if j.words and j.words[0] != j.words[1] and j.verdict is not None]
    # Order 1 shows y1 as A, order 2 shows it as B, so a positive log-odds says A in the first and B in the second.
    votes_for_a = [vote for first, second in both for vote in (_vote(first), _vote(-second))]
    return JudgePanel(
        judged=len(judged),
        flips=_mean([float(first * second < 0) for first, second in both]),
        says_a=_mean(votes_for_a),
        longer_wins=_mean([float(words.index(max(words)) == verdict) for words, verdict in decided]),
        ties=_share(judged, lambda judgement: judgement.reason == "tie"),
        invalid=_share(judged, lambda judgement: judgement.reason == "invalid"),
        margin=_mean([abs(judgement.margin) for judgement in judged if judgement.margin is not None]),
        right=_mean([float(j.verdict == j.better) for j in judged if None not in (j.verdict, j.better)]),
    )


def same_verdict(judgements: Sequence[Judgement], others: Sequence[Judgement]) -> Share:
    """Share of equal verdicts on the questions that both judges decided."""
    theirs = {judgement.id: judgement.verdict for judgement in others if judgement.verdict is not None}
    return _mean([float(j.verdict == theirs[j.id]) for j in judgements if j.verdict is not None and j.id in theirs])


def lengths(iteration: Iteration) -> Lengths:
    """The length ledger: are longer responses chosen, do descriptions grow, are they cut?"""
    pairs = iteration.pairs or ()
    return Lengths(
        pairs=len(pairs),
        chosen=_mean([chosen for _, chosen, _ in pairs]).value,
        rejected=_mean([rejected for _, _, rejected in pairs]).value,
        description=_mean([description.words for description in iteration.descriptions]),
        cut=_mean([float(description.cut) for description in iteration.descriptions]),
    )


def retrospection(iteration: Iteration) -> Retrospection:
    """How the iteration's descriptions come from those before them."""
    seen = [description for description in iteration.descriptions if description.rewriting is not None]
    revisions = [description.revision for description in seen if description.revision is not None]
    return Retrospection(
        descriptions=len(seen),
        unchanged=_mean([float(description.change == 0) for description in seen]),
        rewriting=_total(Rewriting, [description.rewriting for description in seen]),
        revision=_total(Revision, revisions) if revisions else None,
    )


def _total(kind: type[T], parts: Sequence[Any]) -> T:
    """The counts of all parts, field by field."""
    return kind(**{field: sum(getattr(part, field) for part in parts) for field in kind.__dataclass_fields__})


def _vote(log_odds: float) -> float:
    return 0.5 if log_odds == 0 else float(log_odds > 0)


def _share(judged: Sequence[Judgement], holds: Callable[[Judgement], bool]) -> Share:
    return _mean([float(holds(judgement)) for judgement in judged])


def _mean(values: Sequence[float]) -> Share:
    return Share(sum(values) / len(values) if values else None, len(values))


def speed(one: Iteration) -> dict[str, dict[str, float | int]]:
    """How each stage that held dialogues fared, over all of its sessions: the figures of `stages.tally.Tally`."""
    sessions: dict[str, Tally] = {}
    for stage, tally in one.speed:
        sessions[stage] = sessions.get(stage, Tally()) + tally
    return {stage: tally.figures() for stage, tally in sessions.items()}

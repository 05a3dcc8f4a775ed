"""What is measured over iterations, what each measure means, and how its values are written."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from isrdpo_jax.report.load import Estimate, Run

DASH = "–"
PERCENT = "\u00a0%"  # the space does not break


@dataclass(frozen=True)
class Measure:
    """A key of `evaluation/summary.json` and how to read it."""

    key: str
    title: str
    meaning: str
    better: Literal["higher", "lower"] | None = None
    percent: bool = False
    headline: bool = True

    def write(self, value: float | None) -> str:
        """The value for people: `61.3 %` or `1.07`."""
        if value is None or not math.isfinite(value):
            return DASH
        return f"{100 * value:.1f}{PERCENT}" if self.percent else number(value)


MEASURES = (
    Measure("accuracy", "Accuracy", "Held-out answers whose core statement is true.", "higher", percent=True),
    Measure(
        "false_share",
        "False statements, share",
        "Held-out: false statements among all statements made.",
        "lower",
        percent=True,
    ),
    Measure("false_per_answer", "False statements per answer", "Held-out: how many there are.", "lower"),
    Measure("words", "Words per answer", "Held-out: length of an answer."),
    Measure(
        "judge_accuracy",
        "Judge accuracy",
        "The policy's verdicts on its own pairs against ground truth, which the judge never sees.",
        "higher",
        percent=True,
    ),
    Measure(
        "description_accuracy",
        "Description accuracy",
        "True statements among those of the held-out descriptions.",
        "higher",
        percent=True,
    ),
    Measure(
        "length_ratio",
        "Pair length ratio",
        "Words of the chosen responses over words of the rejected; above 1 the judge rewards length.",
    ),
    Measure("chosen_words", "Words, chosen", "Length of the chosen responses.", headline=False),
    Measure("rejected_words", "Words, rejected", "Length of the rejected responses.", headline=False),
)
BY_KEY = {measure.key: measure for measure in MEASURES}


@dataclass(frozen=True)
class Point:
    """A measure's value at one iteration of a run."""

    iteration: int
    estimate: Estimate


@dataclass(frozen=True)
class Change:
    """A measure at the first and at the last iteration of a run that have it; None where no iteration has."""

    measure: Measure
    first: Point | None
    last: Point | None

    @property
    def difference(self) -> float | None:
        """Last minus first; None without two iterations to compare."""
        if self.first is None or self.last is None or self.first == self.last:
            return None
        return self.last.estimate.value - self.first.estimate.value

    @property
    def direction(self) -> str:
        """In words: "better", "worse", or "" where there is no better, or the two intervals overlap."""
        if self.measure.better is None or self.difference is None or not _apart(self.first, self.last):
            return ""
        return "better" if (self.difference > 0) == (self.measure.better == "higher") else "worse"


def series(run: Run, measure: Measure) -> list[Point]:
    """The measure wherever the run has it."""
    found = ((iteration.number, (iteration.summary or {}).get(measure.key)) for iteration in run.iterations)
    return [Point(number, estimate) for number, estimate in found if estimate is not None]


def change(run: Run, measure: Measure) -> Change:
    """First and last value of the measure in the run; measures of pairs begin at iteration 1, which π_1 produced."""
    points = series(run, measure)
    return Change(measure, points[0], points[-1]) if points else Change(measure, None, None)


def _apart(first: Point | None, last: Point | None) -> bool:
    """Whether both have intervals, and these do not overlap."""
    if first is None or last is None:
        return False
    a, b = first.estimate, last.estimate
    if a.low is None or a.high is None or b.low is None or b.high is None:
        return False
    return a.high < b.low or b.high < a.low


def interval(estimate: Estimate | None, measure: Measure) -> str:
    """`[58.0, 64.4]` in the measure's unit, or empty."""
    if estimate is None or estimate.low is None or estimate.high is None:
        return ""
    low, high = measure.write(estimate.low), measure.write(estimate.high)
    return f"[{low.removesuffix(PERCENT)}, {high.removesuffix(PERCENT)}]"


def number(value: float | None, digits: int | None = None) -> str:
    """A number with about three significant digits, or a dash."""
    if value is None or not math.isfinite(value):
        return DASH
    if digits is None:
        digits = 1 if abs(value) >= 10 else 2 if abs(value) >= 1 or value == 0 else 3
    return f"{value:,.{digits}f}".replace("-", "−")


def signed(value: float | None, digits: int | None = None) -> str:
    """A number with its sign, or a dash."""
    text = number(value, digits)
    return text if value is None or text == DASH or text.startswith("−") else f"+{text}"


def percent(value: float | None, digits: int = 0) -> str:
    """A share as a percentage, or a dash."""
    return DASH if value is None or not math.isfinite(value) else f"{100 * value:.{digits}f}{PERCENT}"

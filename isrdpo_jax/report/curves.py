"""Which curves the report draws: every measure over iterations, and the training metrics over updates."""

from __future__ import annotations

import math
from collections.abc import Sequence

from markupsafe import Markup

from isrdpo_jax.report.load import Run
from isrdpo_jax.report.measures import BY_KEY, Measure, series
from isrdpo_jax.report.plots import Line, draw


def measure_curve(runs: Sequence[Run], labels: Sequence[str], measure: Measure) -> Markup:
    """One measure over iterations, with its intervals, the runs overlaid."""
    lines = [_measured_line(i, run, label, measure) for i, (run, label) in enumerate(zip(runs, labels, strict=True))]
    return draw(
        f"curve-{measure.key.replace('_', '-')}",
        measure.title,
        lines,
        x_label="iteration",
        percent=measure.percent,
        level=1.0 if measure.key == "length_ratio" else None,
        level_label="equal length",
        integer_x=True,
    )


def length_curves(runs: Sequence[Run], labels: Sequence[str]) -> list[tuple[str, str, Markup]]:
    """(title, what it means, SVG): words of chosen and rejected over iterations, and of held-out answers."""

    def panel(name: str, title: str, *keys: str) -> Markup:
        lines = [
            _measured_line(i, run, f"{label}, {BY_KEY[key].title}", BY_KEY[key], faint=key != keys[0])
            for key in keys
            for i, (run, label) in enumerate(zip(runs, labels, strict=True))
        ]
        return draw(f"length-{name}", title, lines, x_label="iteration", integer_x=True)

    return [
        (
            "Words of the pairs",
            "Chosen strong, rejected faint. The gap is what DPO can learn about length.",
            panel("pairs", "Words of the pairs", "chosen_words", "rejected_words"),
        ),
        (
            "Words of held-out answers",
            "What it did learn: the length of greedy answers to questions that it was not trained on.",
            panel("answers", "Words of held-out answers", "words"),
        ),
    ]


def training_curves(runs: Sequence[Run], labels: Sequence[str]) -> list[tuple[str, str, Markup]]:
    """(title, what it means, SVG) of the training metrics, the iterations one behind the other."""

    def panel(name: str, title: str, *keys: str, level: float | None = None, level_label: str = "") -> Markup:
        lines = [
            _training_line(i, run, label, key, faint=key != keys[0])
            for key in keys
            for i, (run, label) in enumerate(zip(runs, labels, strict=True))
        ]
        return draw(
            f"training-{name}",
            title,
            lines,
            x_label="update",
            percent=name == "accuracy",
            level=level,
            level_label=level_label,
            breaks=_breaks(runs),
        )

    loss_level = math.log(2) if all(_begins_at_log_2(run) for run in runs) else None
    return [
        (
            "Loss",
            "Begins at its value for margin 0 in every iteration, and should fall.",
            panel("loss", "Loss", "loss", level=loss_level, level_label="log 2"),
        ),
        (
            "Margin",
            "β × (chosen − rejected log-prob, each against the reference); should grow from 0.",
            panel("margin", "Margin", "rewards/margins"),
        ),
        (
            "Preference accuracy",
            "Share of pairs with a positive margin; should rise above one half.",
            panel("accuracy", "Preference accuracy", "rewards/accuracies", level=0.5),
        ),
        (
            "Log-probs of the responses",
            "Chosen strong, rejected faint, summed over tokens. Both may fall while the margin grows: displacement.",
            panel("logps", "Log-probs of the responses", "logps/chosen", "logps/rejected"),
        ),
    ]


def _measured_line(index: int, run: Run, label: str, measure: Measure, faint: bool = False) -> Line:
    points = series(run, measure)
    estimates = [point.estimate for point in points]
    return Line(
        run=index,
        label=label,
        x=[point.iteration for point in points],
        y=[estimate.value for estimate in estimates],
        low=() if faint else [estimate.low for estimate in estimates],
        high=() if faint else [estimate.high for estimate in estimates],
        faint=faint,
    )


def _training_line(index: int, run: Run, label: str, key: str, faint: bool) -> Line:
    x: list[float] = []
    y: list[float | None] = []
    start = 0
    for iteration in run.trained:
        rows = iteration.metrics
        # A gap behind each iteration: nothing connects the end of one with the start of the next.
        x += [start + position for position in range(len(rows))] + [start + len(rows) - 0.5]
        y += [row[key] if isinstance(row.get(key), int | float) else None for row in rows] + [None]
        start += len(rows)
    return Line(index, f"{label}, {key.rpartition('/')[2]}", x, y, faint=faint)


def _breaks(runs: Sequence[Run]) -> list[float]:
    """Where iterations begin, if all runs agree on it."""
    starts = []
    for run in runs:
        sizes = [len(iteration.metrics) for iteration in run.trained if iteration.metrics]
        starts.append([sum(sizes[:i]) - 0.5 for i in range(1, len(sizes))])
    longest = max(starts, key=len, default=[])
    return longest if all(start == longest[: len(start)] for start in starts) else []


def _begins_at_log_2(run: Run) -> bool:
    """Whether the loss at margin 0 is log 2: the sigmoid family without the SFT term."""
    return run.setting("dpo.loss", "sigmoid") in ("sigmoid", "robust") and not run.setting("dpo.sft_weight", 0)

"""The experiments on the embedded world, several seeds each: one table, with intervals over seeds and videos.

    python benchmarks/embedded.py                          # hours on two cores; again = resumes
    python benchmarks/embedded.py run.iterations=1         # KEY=VALUE for every run

It runs configs/sweeps/experiments.yaml (or --sweep), and behind every run that ends it writes results/embedded.json and
results/embedded.md: held-out figures of the last iteration, and how much each experiment's accuracy exceeds that of the
first one on the same seeds and videos. A row is there as soon as one of its seeds is done, and says which are.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from isrdpo_jax.evaluation.bootstrap import crossed_interval
from isrdpo_jax.evaluation.summary import words
from isrdpo_jax.report.measures import BY_KEY, PERCENT
from isrdpo_jax.runs.atomic import read_jsonl, write_json, write_text
from isrdpo_jax.runs.layout import IterationLayout
from isrdpo_jax.runs.manifest import load_verified
from isrdpo_jax.sweep.points import Point, Sweep, label, read_sweep
from isrdpo_jax.sweep.running import is_finished, run_sweep

ROOT = Path(__file__).parents[1]
SEED = "run.seed"
SAMPLES = 10_000

Row = dict[str, Any]
Tables = tuple[np.ndarray, np.ndarray]  # float64[runs, videos]: numerators and denominators

# Of answers (or descriptions): the file, numerator and denominator of one row.
FIGURES: dict[str, tuple[str, Callable[[Row], float], Callable[[Row], float]]] = {
    "accuracy": ("answers", lambda row: row["grade"]["core"], lambda row: 1),
    "false_per_answer": ("answers", lambda row: row["grade"]["false"], lambda row: 1),
    "words": ("answers", lambda row: words(row["text"]), lambda row: 1),
    "description_accuracy": ("descriptions", lambda row: row["grade"]["right"], lambda row: row["grade"]["total"]),
}


def tables(points: Sequence[Point], figure: str) -> Tables:
    """Numerators and denominators of the last iteration, by point and video; joined by the videos' ids."""
    file, over, under = FIGURES[figure]
    found: list[dict[str, tuple[float, float]]] = []
    for point in points:
        totals: dict[str, tuple[float, float]] = {}
        for row in read_jsonl(_last(point).evaluation / f"{file}.jsonl"):
            above, below = totals.get(row["video"], (0.0, 0.0))
            totals[row["video"]] = (above + over(row), below + under(row))
        found.append(totals)
    videos = sorted(found[0])
    if any(sorted(totals) != videos for totals in found):
        raise SystemExit(f"{points[0].name}: its runs were evaluated on different videos; they are not one row.")
    both = np.array([[totals[video] for video in videos] for totals in found], np.float64)
    return both[..., 0], both[..., 1]


def measure(sweep: Sweep) -> list[Row]:
    """One row per experiment of which a seed is done: {"case", "seeds", "iterations", figures, "accuracy_gain"}."""
    groups: dict[str, list[Point]] = {}
    for point in sweep.points:
        case = ", ".join(label(value) for key, value in point.values.items() if key != SEED)
        groups.setdefault(case, []).append(point)
    first = {point.values.get(SEED): point for point in next(iter(groups.values())) if is_finished(point)}
    rows = []
    for case, points in groups.items():
        done = [point for point in points if is_finished(point)]
        if not done:
            continue
        for point in done:
            load_verified(_last(point).manifest("evaluate"))
        row: Row = {"case": case, "seeds": [point.config.run.seed for point in done]}
        row["iterations"] = done[0].config.run.iterations
        row |= {name: crossed_interval(*tables(done, name), SAMPLES, seed=0).to_json() for name in FIGURES}
        paired = [point for point in done if point.values.get(SEED) in first]
        if paired and case != next(iter(groups)):
            against = tables([first[point.values.get(SEED)] for point in paired], "accuracy")
            gain = crossed_interval(*tables(paired, "accuracy"), SAMPLES, seed=0, other=against)
            row["accuracy_gain"] = gain.to_json()
        rows.append(row)
    return rows


def markdown(rows: Sequence[Row]) -> str:
    """The table, as the README shows it."""
    first = rows[0]["case"] if rows else ""
    titles = [BY_KEY[name].title for name in FIGURES]
    lines = [
        f"| experiment | seeds | iterations | {' | '.join(titles)} | accuracy over {first} |",
        f"|---|{'---|' * (len(titles) + 3)}",
    ]
    for row in rows:
        cells = [_cell(row[name], BY_KEY[name].write) for name in FIGURES]
        gain = _cell(row["accuracy_gain"], lambda x: f"{100 * x:+.1f}{PERCENT}") if "accuracy_gain" in row else ""
        lines.append(f"| {row['case']} | {len(row['seeds'])} | {row['iterations']} | {' | '.join(cells)} | {gain} |")
    return "\n".join(lines) + "\n"


def _cell(figure: Row, write: Callable[[float], str]) -> str:
    if figure["value"] is None:
        return "–"
    bounds = "" if figure["low"] is None else f" [{write(figure['low'])}, {write(figure['high'])}]"
    return f"{write(figure['value'])}{bounds}"


def _last(point: Point) -> IterationLayout:
    return point.layout.iteration(point.config.run.iterations)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    parser.add_argument("--sweep", type=Path, default=ROOT / "configs/sweeps/experiments.yaml")
    parser.add_argument("--out", type=Path, default=ROOT / "results", help="folder of embedded.json and embedded.md")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the table")
    arguments = parser.parse_args()
    sweep = read_sweep(arguments.sweep, arguments.overrides)

    def write() -> list[Row]:
        rows = measure(sweep)
        write_json(arguments.out / "embedded.json", {"name": "embedded", "sweep": sweep.name, "rows": rows})
        write_text(arguments.out / "embedded.md", markdown(rows))
        return rows

    run_sweep(sweep, Console(stderr=True), after_point=write)
    rows = write()
    print(json.dumps({"name": "embedded", "rows": rows}) if arguments.json else markdown(rows))


if __name__ == "__main__":
    main()

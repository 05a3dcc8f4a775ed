"""Is the effect real? Every experiment on the embedded world, from start policies of several seeds, in one table.

    python benchmarks/effect.py                                # results/effect.json, .md and .svg
    python benchmarks/effect.py --seeds 0 --methods isr_dpo    # one row, with the figures of the whole

A seed trains its own start policy, and everything behind it. It takes hours on two cores; the same command again
resumes, and twice at once is faster. The table is written behind every run that ends: held-out figures of the start,
of the fifth and of the ninth iteration, how much each experiment's accuracy exceeds self-rewarding's and the start's on
the same seeds and videos, every seed by itself, and how ISR-DPO and self-rewarding go from iteration to iteration.
Intervals draw seeds and videos independently; of three seeds they are rough.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from rich.console import Console

from isrdpo_jax.config import load_config
from isrdpo_jax.errors import RunLockedError
from isrdpo_jax.evaluation.bootstrap import Estimate, crossed_interval
from isrdpo_jax.evaluation.summary import words
from isrdpo_jax.report.measures import BY_KEY
from isrdpo_jax.runs.atomic import read_json, read_jsonl, write_json, write_text
from isrdpo_jax.runs.layout import IterationLayout, RunLayout
from isrdpo_jax.runs.manifest import load_verified
from isrdpo_jax.start_policy import train_start_policy
from isrdpo_jax.sweep.points import Point, Sweep
from isrdpo_jax.sweep.running import run_sweep

ROOT = Path(__file__).parents[1]
SEEDS = (0, 1, 2)
# Iterations of each experiment: all have five, and two show how it goes on.
METHODS = {
    "isr_dpo": 9,
    "self_rewarding": 9,
    "no_retrospection": 5,
    "blind_judge": 5,
    "random_preferences": 5,
    "true_preferences": 5,
    "reference_initial": 5,
    "text_judge": 5,
    "rubric_judge": 5,
}
BASELINE = "self_rewarding"
LINES = ("isr_dpo", BASELINE)  # followed from iteration to iteration
CURVES = ("accuracy", "false_share", "words", "judge_accuracy", "length_ratio", "description_accuracy")
OF_PAIRS = ("judge_accuracy", "length_ratio")  # which the start has not
SHORT, LONG = 5, 9
SAMPLES = 10_000

Row = dict[str, Any]
Curves = dict[str, dict[str, list[list[Row]]]]  # experiment -> measure -> seed -> iteration -> {"value", "count"}

# Of answers (or descriptions): the file, numerator and denominator of one row.
FIGURES: dict[str, tuple[str, Callable[[Row], float], Callable[[Row], float]]] = {
    "accuracy": ("answers", lambda row: row["grade"]["core"], lambda row: 1),
    "false_share": ("answers", lambda row: row["grade"]["false"], lambda row: row["grade"]["statements"]),
    "words": ("answers", lambda row: words(row["text"]), lambda row: 1),
    "description_accuracy": ("descriptions", lambda row: row["grade"]["right"], lambda row: row["grade"]["total"]),
}


def seed_folder(runs: Path, seed: int) -> Path:
    return runs / f"seed_{seed}"


def methods_of(seed: int, methods: Sequence[str], start: str, config: Path, runs: Path) -> Sweep:
    """The experiments of one seed; they share what is the same in several of them."""
    root = seed_folder(runs, seed)
    points = []
    for method in methods:
        file = ROOT / "configs" / "experiments" / f"{method}.yaml"
        places = [f"include={file}", f"run.dir={root}", f"run.name={method}", f"run.seed={seed}"]
        how = [f"run.iterations={METHODS[method]}", f"start={start}"]
        points.append(Point({"method": method}, load_config(config, [*places, *how]).config))
    return Sweep(f"seed_{seed}", root, tuple(points))


def make_start(seed: int, config: Path, runs: Path, console: Console) -> str | None:
    """The seed's own start policy, trained now or before; None where another process is at it."""
    places = [f"run.dir={seed_folder(runs, seed)}", "run.name=start", f"run.seed={seed}"]
    try:
        return str(train_start_policy(load_config(config, places).config, console))
    except RunLockedError as error:
        console.print(f"{error} The next seed, then.", highlight=False, soft_wrap=True, markup=False)
        return None


def table(layouts: Sequence[IterationLayout], figure: str) -> tuple[np.ndarray, np.ndarray]:
    """Numerators and denominators, float64[runs, videos], joined by the videos' ids."""
    file, over, under = FIGURES[figure]
    found: list[dict[str, np.ndarray]] = []
    for layout in layouts:
        load_verified(layout.manifest("evaluate"))
        totals: dict[str, np.ndarray] = {}
        for row in read_jsonl(layout.evaluation / f"{file}.jsonl"):
            totals[row["video"]] = totals.get(row["video"], np.zeros(2)) + (over(row), under(row))
        found.append(totals)
    videos = sorted(found[0])
    if any(sorted(totals) != videos for totals in found):
        raise SystemExit("Runs of one row were evaluated on different videos; delete those of an older configuration.")
    sums = np.array([[totals[video] for video in videos] for totals in found])
    return sums[..., 0], sums[..., 1]


def measure(figure: str, layouts: Sequence[IterationLayout], against: Sequence[IterationLayout] = ()) -> Estimate:
    """A figure over seeds and videos, or how much it exceeds that of other runs on the same seeds and videos."""
    other = table(against, figure) if against else None
    return crossed_interval(*table(layouts, figure), SAMPLES, seed=0, other=other)


def rows_of(seeds: Sequence[int], runs: Path) -> list[Row]:
    """One row per experiment and number of iterations of which a seed is there.

    {"case", "iterations", "seeds", figures, "length_ratio", "accuracy_gain", "accuracy_start_gain",
    "by_seed": {seed: figures}}
    """

    def at(method: str, iteration: int) -> dict[int, IterationLayout]:
        found = {seed: RunLayout(seed_folder(runs, seed) / method).iteration(iteration) for seed in seeds}
        return {seed: layout for seed, layout in found.items() if layout.manifest("evaluate").exists()}

    wanted = [("isr_dpo", 0), *((method, SHORT) for method in METHODS)]
    wanted += [(method, LONG) for method, iterations in METHODS.items() if iterations == LONG]
    rows = []
    for method, iteration in wanted:
        done = at(method, iteration)
        if not done:
            continue
        row: Row = {"case": method if iteration else "start", "iterations": iteration, "seeds": list(done)}
        row |= {name: measure(name, list(done.values())).to_json() for name in FIGURES}
        row["length_ratio"] = _ratio(list(done.values()))
        for name, other in (("accuracy_gain", at(BASELINE, iteration)), ("accuracy_start_gain", at(method, 0))):
            paired = [seed for seed in done if seed in other]
            if paired and iteration and (name, method) != ("accuracy_gain", BASELINE):
                ours, theirs = [done[seed] for seed in paired], [other[seed] for seed in paired]
                row[name] = measure("accuracy", ours, theirs).to_json()
        row["by_seed"] = {
            str(seed): {name: measure(name, [layout]).to_json() for name in FIGURES} for seed, layout in done.items()
        }
        rows.append(row)
    return rows


def curves_of(seeds: Sequence[int], runs: Path) -> Curves:
    """What was measured at the start and behind every iteration; of pairs, from iteration 1 on."""
    curves: Curves = {}
    for method in METHODS:
        for seed in seeds:
            layouts = RunLayout(seed_folder(runs, seed) / method).iterations()
            done = [read_json(one.evaluation / "summary.json") for one in layouts if one.manifest("evaluate").exists()]
            for key in CURVES if done else ():
                line = [{name: summary[key][name] for name in ("value", "count")} for summary in done if key in summary]
                curves.setdefault(method, {}).setdefault(key, []).append(line)
    return curves


def pooled(lines: Sequence[Sequence[Row]], place: int) -> tuple[float | None, int]:
    """The mean of a measure over all seeds' answers (or pairs, statements), and of how many seeds it is there."""
    found = [line[place] for line in lines if 0 <= place < len(line) and line[place]["value"] is not None]
    count = sum(one["count"] for one in found)
    return sum(one["value"] * one["count"] for one in found) / count if count else None, len(found)


def draw(curves: Curves) -> Figure:
    """One panel a measure; a line is of all seeds together, as far as every one of them is, its band their range."""
    figure = Figure(figsize=(11, 6), layout="constrained")
    for key, axes in zip(CURVES, figure.subplots(2, 3).flat, strict=True):
        for method, found in curves.items():
            first = int(key in OF_PAIRS)
            means = [pooled(found[key], t)[0] for t in range(min(map(len, found[key])))]
            there = [t for t, mean in enumerate(means) if mean is not None]
            x = [first + t for t in there]
            thick = method in (*LINES, "random_preferences", "true_preferences")
            axes.plot(x, [means[t] for t in there], label=method, lw=2 if thick else 0.8, marker=".")
            if method in LINES:
                values = [[line[t]["value"] for line in found[key]] for t in there]
                columns = [[value for value in column if value is not None] for column in values]
                axes.fill_between(x, list(map(min, columns)), list(map(max, columns)), alpha=0.15)
        axes.set(title=BY_KEY[key].title, xlabel="iteration")
        if BY_KEY[key].percent:
            axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axes.grid(alpha=0.3)
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=5, frameon=False)
    return figure


def _ratio(layouts: Sequence[IterationLayout]) -> float | None:
    """Words of the chosen responses over words of the rejected, of all seeds' pairs in this iteration."""
    summaries = [read_json(layout.evaluation / "summary.json") for layout in layouts]
    return pooled([[summary["length_ratio"]] for summary in summaries if "length_ratio" in summary], 0)[0]


def markdown(rows: Sequence[Row], curves: Curves) -> str:
    """Three tables: over seeds, each seed by itself, and iteration by iteration."""
    gain = partial(_cell, write=lambda x: f"{100 * x:+.1f}")
    titles = [BY_KEY[name].title for name in FIGURES]
    lines = _head(
        ["experiment", "iterations", "seeds", *titles, "pair length ratio", f"points over {BASELINE}", "over start"]
    )
    for row in rows:
        cells = [row["case"], row["iterations"], len(row["seeds"])]
        cells += [_cell(row[name], BY_KEY[name].write) for name in FIGURES]
        cells.append("" if row["length_ratio"] is None else f"{row['length_ratio']:.2f}")
        cells += [gain(row[name]) if name in row else "" for name in ("accuracy_gain", "accuracy_start_gain")]
        lines.append(_line(cells))
    seeds = sorted({seed for row in rows for seed in row["by_seed"]}, key=int)
    lines += ["", *_head(["experiment", "iterations", *(f"seed {seed}: accuracy, false share" for seed in seeds)])]
    for row in rows:
        lines.append(_line([row["case"], row["iterations"], *(_pair(row["by_seed"].get(seed)) for seed in seeds)]))
    lines += ["", *_head(["experiment", "iteration", *(BY_KEY[key].title for key in CURVES)])]
    for method in (name for name in LINES if name in curves):
        for t in range(max(map(len, curves[method]["accuracy"]))):
            cells = [_pooled_at(curves[method][key], t - (key in OF_PAIRS), BY_KEY[key].write) for key in CURVES]
            lines.append(_line([method, t, *cells]))
    return "\n".join(lines) + "\n"


def _pooled_at(lines: Sequence[Sequence[Row]], place: int, write: Callable[[float], str]) -> str:
    """The pooled mean, and of how many seeds it is where some are not this far."""
    mean, seeds = pooled(lines, place)
    return "" if mean is None else write(mean) + ("" if seeds == len(lines) else f" ({seeds} of {len(lines)})")


def _head(titles: Sequence[str]) -> list[str]:
    return [_line(titles), f"|{'---|' * len(titles)}"]


def _line(cells: Sequence[object]) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def _pair(figures: Row | None) -> str:
    if figures is None:
        return ""
    return ", ".join(BY_KEY[name].write(figures[name]["value"]) for name in ("accuracy", "false_share"))


def _cell(figure: Row, write: Callable[[float], str]) -> str:
    if figure["value"] is None:
        return "–"
    bounds = "" if figure["low"] is None else f" [{write(figure['low'])}, {write(figure['high'])}]"
    return f"{write(figure['value'])}{bounds}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--config", type=Path, default=ROOT / "configs" / "shapes.yaml")
    parser.add_argument("--sft", type=Path, default=ROOT / "configs" / "shapes_sft.yaml")
    parser.add_argument("--runs", type=Path, default=Path("runs") / "effect", help="folder of the runs")
    parser.add_argument("--out", type=Path, default=ROOT / "results", help="folder of the table")
    arguments = parser.parse_args()
    console, runs = Console(stderr=True), arguments.runs

    def write() -> str:
        rows, curves = rows_of(arguments.seeds, runs), curves_of(arguments.seeds, runs)
        text = markdown(rows, curves)
        write_json(arguments.out / "effect.json", {"name": "effect", "rows": rows, "curves": curves})
        write_text(arguments.out / "effect.md", text)
        with rc_context({"svg.hashsalt": "effect", "svg.fonttype": "none"}):
            draw(curves).savefig(arguments.out / "effect.svg", metadata={"Date": None})
        return text

    for seed in arguments.seeds:
        make_start(seed, arguments.sft, runs, console)  # all first: who shares the work has something to do meanwhile
    failed = []
    for seed in arguments.seeds:
        if start := make_start(seed, arguments.sft, runs, console):
            sweep = methods_of(seed, arguments.methods, start, arguments.config, runs)
            done = run_sweep(sweep, console, after_point=write)
            failed += [f"{sweep.name}/{row['point']}" for row in done if row["state"] not in ("done", "running")]
    print(write())
    if failed:
        raise SystemExit(f"The table lacks {', '.join(failed)}: why is said above.")


if __name__ == "__main__":
    main()

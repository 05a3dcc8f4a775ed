"""How often is the judge right, and what does it owe to the description, to the look back and to the video?

    python benchmarks/judge_agreement.py       # behind `benchmarks/effect.py`; again = resumes

On the pairs that ISR-DPO's policies sampled in some of their iterations, every seed's judge is asked again without a
description, with a fresh one, with the true one, with a black and with another video; right is what the ground truth
prefers, on the same pairs. Beside it: how much of c_t is true over the iterations, with the look back and without, and
what becomes of its statements. Writes results/judge_agreement.json and .md. Intervals draw seeds and videos.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from isrdpo_jax.config import load_config
from isrdpo_jax.data.loader import open_split
from isrdpo_jax.data.shapes_world.revision import revision
from isrdpo_jax.evaluation.bootstrap import crossed_interval
from isrdpo_jax.evaluation.judging import descriptions_right, judged_correctly
from isrdpo_jax.evaluation.rejudge import rejudge
from isrdpo_jax.report.measures import DASH
from isrdpo_jax.runs.atomic import read_json, read_jsonl, write_json, write_text
from isrdpo_jax.runs.layout import IterationLayout, RunLayout
from isrdpo_jax.stages.parts import read_parts

ROOT = Path(__file__).parents[1]
SAMPLES = 10_000
STORED = "own description"  # as the run itself judged
SETTINGS = {
    "no description": ["judge.context=none"],
    "fresh description": ["judge.context=fresh"],
    "true description": ["judge.context=truth"],
    "own description, black video": ["judge.video=blank"],
    "own description, another video": ["judge.video=shuffled"],
    "no description, black video": ["judge.context=none", "judge.video=blank"],
}

Row = dict[str, Any]
Tables = Mapping[str, np.ndarray]  # by kind of judge: float64[2, seeds, videos], right and all


def judged_again(run: Path, iteration: int, overrides: Sequence[str], console: Console) -> list[Row]:
    """The verdicts under other settings, those of an earlier call where there are any."""
    for kept in sorted(RunLayout(run).iteration(iteration).rejudged.glob("*.json")):
        changed = read_json(kept)["changed"]
        if {f"judge.{key}={value}" for key, value in changed.items()} == set(overrides):
            return read_jsonl(kept.with_suffix(".jsonl"))
    return rejudge(run, iteration, overrides, console)["rows"]


def agreement(run: Path, iteration: int, truths: Mapping[str, Any], console: Console) -> dict[str, list[Row]]:
    """By kind of judge: {"video", "correct", "same_length"} of every pair whose responses truly differ."""
    layout = RunLayout(run).iteration(iteration)
    responses = read_parts(layout, "responses")
    found = {STORED: judged_correctly(responses, read_parts(layout, "judgements"), truths)}
    for name, overrides in SETTINGS.items():
        found[name] = judged_correctly(responses, judged_again(run, iteration, overrides, console), truths)
    return found


def tables(by_seed: Sequence[Mapping[str, Sequence[Row]]], videos: Sequence[str], *, same_length: bool) -> Tables:
    """Right verdicts and verdicts, by seed and video."""
    place = {video: i for i, video in enumerate(videos)}
    out = {}
    for name in (STORED, *SETTINGS):
        counts = np.zeros((2, len(by_seed), len(videos)))
        for seed, found in enumerate(by_seed):
            for row in found[name]:
                if row["same_length"] or not same_length:
                    counts[:, seed, place[row["video"]]] += (row["correct"], 1)
        out[name] = counts
    return out


def figures(counts: Tables) -> dict[str, Row]:
    """By kind of judge: how often it is right, and how much more often the run's own judge is."""
    out: dict[str, Row] = {}
    own_right, own_total = counts[STORED]
    for name, (right, total) in counts.items():
        out[name] = {"agreement": crossed_interval(right, total, SAMPLES, seed=0).to_json()}
        if name != STORED:
            own = crossed_interval(own_right, own_total, SAMPLES, seed=0, other=(right, total))
            out[name]["own_minus_this"] = own.to_json()
    return out


def contexts(layout: IterationLayout, truths: Mapping[str, Any]) -> Row | None:
    """How much of c_t is true, and what became of the statements of c_{t-1}."""
    if not layout.manifest("collect").exists():
        return None
    rows = read_parts(layout, "descriptions")
    graded = descriptions_right(rows, truths)
    became: Counter[str] = Counter()
    for row in rows:
        if row["previous"]:
            became.update(asdict(revision(row["previous"], row["text"], truths[row["video"]])))
    right, total = (sum(row[key] for row in graded) for key in ("right", "total"))
    return {"right": right, "total": total, "became": dict(became)}


def markdown(result: Row) -> str:
    lines = [
        "| judge | iterations | pairs | right | own description better by | of equally long pairs |",
        "|---|---|---|---|---|---|",
    ]
    for part in result["judges"]:
        for name, row in part["all"].items():
            same = part["same_length"][name]
            gains = [_points(one["own_minus_this"]) if name != STORED else "" for one in (row, same)]
            cells = [name, part["iterations"], row["agreement"]["count"], _share(row["agreement"]), *gains]
            lines.append(f"| {' | '.join(map(str, cells))} |")
    lines += [
        "",
        "| iteration | c_t right, look back | fresh | corrected | spoiled | kept wrong |",
        "|---|---|---|---|---|---|",
    ]
    for row in result["contexts"]:
        back, fresh = row["isr_dpo"], row["no_retrospection"]
        became = [back["became"].get(key, 0) for key in ("corrected", "spoiled", "kept_wrong")] if back else []
        shares = [f"{100 * one['right'] / one['total']:.1f} %" if one else "" for one in (back, fresh)]
        lines.append(f"| {' | '.join(map(str, [row['iteration'], *shares, *became]))} |")
    return "\n".join(lines) + "\n"


def _share(one: Row) -> str:
    return (
        DASH if one["low"] is None else f"{100 * one['value']:.1f} % [{100 * one['low']:.1f}, {100 * one['high']:.1f}]"
    )


def _points(one: Row) -> str:
    return (
        DASH if one["low"] is None else f"{100 * one['value']:+.1f} [{100 * one['low']:+.1f}, {100 * one['high']:+.1f}]"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs") / "effect", help="what benchmarks/effect.py left")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--iterations", type=int, nargs="+", default=[1, 3, 5], help="whose pairs are judged again")
    parser.add_argument("--out", type=Path, default=ROOT / "results")
    arguments = parser.parse_args()
    console = Console(stderr=True)
    runs = {
        method: [arguments.runs / f"seed_{seed}" / method for seed in arguments.seeds]
        for method in ("isr_dpo", "no_retrospection")
    }
    one = RunLayout(runs["isr_dpo"][0])
    num_frames = read_json(one.root / "model.json")["vision"]["num_frames"]
    truths = {
        video.id: video.truth for video in open_split(load_config(one.config).config, "train", num_frames=num_frames)
    }
    found = {t: [agreement(run, t, truths, console) for run in runs["isr_dpo"]] for t in arguments.iterations}
    pooled = [
        {name: [row for t in found for row in found[t][seed][name]] for name in (STORED, *SETTINGS)}
        for seed in range(len(arguments.seeds))
    ]
    parts = {str(t): by_seed for t, by_seed in found.items()} | {"all of these": pooled}
    judges = [
        {
            "iterations": name,
            "all": figures(tables(by_seed, sorted(truths), same_length=False)),
            "same_length": figures(tables(by_seed, sorted(truths), same_length=True)),
        }
        for name, by_seed in parts.items()
    ]
    last = max(len(RunLayout(run).iterations()) for run in runs["isr_dpo"])
    over_time = [
        {"iteration": t} | {method: _sum(folders, t, truths) for method, folders in runs.items()}
        for t in range(1, last)
    ]
    over_time = [row for row in over_time if row["isr_dpo"]]
    result = {"name": "judge_agreement", "seeds": arguments.seeds, "judges": judges, "contexts": over_time}
    write_json(arguments.out / "judge_agreement.json", result)
    write_text(arguments.out / "judge_agreement.md", markdown(result))
    print(markdown(result))


def _sum(runs: Sequence[Path], iteration: int, truths: Mapping[str, Any]) -> Row | None:
    """`contexts` over all seeds; None where a seed is not that far."""
    found = [contexts(RunLayout(run).iteration(iteration), truths) for run in runs]
    there = [one for one in found if one]
    if len(there) < len(runs):
        return None
    became: Counter[str] = Counter()
    for one in there:
        became.update(one["became"])
    return {"right": sum(one["right"] for one in there), "total": sum(one["total"] for one in there), "became": became}


if __name__ == "__main__":
    main()

"""What `collect.int8_prefixes` changes: the same collect of embedded videos with and without it, by the same policy.

    python benchmarks/int8_prefixes.py [--videos 256] [--json] [KEY=VALUE ...]

It is `isrdpo run configs/shapes.yaml --until collect` both ways, with KEY=VALUE, in a folder that is removed again.
Texts are drawn with the same noise, so that one differs only where rounding turns a near-tie. Verdicts are compared
where question, answers and description are the same.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from rows import Row, show

from isrdpo_jax.runs.layout import IterationLayout, RunLayout
from isrdpo_jax.stages.parts import read_parts

ROOT = Path(__file__).parents[1]


def collect(folder: Path, videos: int, name: str, overrides: list[str]) -> IterationLayout:
    settings = [f"run.dir={folder}", f"run.name={name}", f"data.dir={folder}/data", f"data.train_videos={videos}"]
    command = [sys.executable, "-m", "isrdpo_jax", "run", str(ROOT / "configs/shapes.yaml"), *settings, *overrides]
    environment = {**os.environ, "JAX_PLATFORMS": os.environ.get("JAX_PLATFORMS", "cpu")}
    subprocess.run([*command, "--until", "collect"], check=True, stdout=sys.stderr, env=environment)
    return RunLayout(folder / name).iteration(1)


def compare(exact: IterationLayout, rounded: IterationLayout) -> list[Row]:
    def texts(layout: IterationLayout) -> dict[str, list[str]]:
        return {row["id"]: [one["text"] for one in row["responses"]] for row in read_parts(layout, "responses")}

    def descriptions(layout: IterationLayout) -> dict[str, str]:
        return {row["video"]: row["text"] for row in read_parts(layout, "descriptions")}

    said, said_rounded = texts(exact), texts(rounded)
    seen, seen_rounded = descriptions(exact), descriptions(rounded)
    judged = {row["id"]: row for row in read_parts(rounded, "judgements")}
    same, moved, turned = 0, [], 0
    for row in read_parts(exact, "judgements"):
        other = judged[row["id"]]
        comparable = row["log_odds"] and said[row["id"]] == said_rounded[row["id"]]
        if comparable and row["context"] == other["context"]:
            same += 1
            turned += row["verdict"] != other["verdict"]
            moved += np.abs(np.subtract(row["log_odds"], other["log_odds"])).tolist()
    if not same:
        raise SystemExit("No question has the same answers and description both ways; verdicts cannot be compared.")
    pairs = [(one, two) for key in said for one, two in zip(said[key], said_rounded[key], strict=True)]

    rows = [
        ("answers that stay the same", sum(one == two for one, two in pairs) / len(pairs), "share"),
        ("descriptions that stay the same", sum(seen[v] == seen_rounded[v] for v in seen) / len(seen), "share"),
        ("verdicts that turn", turned / same, "share"),
        ("log-odds of a verdict move by, mean", float(np.mean(moved)), "nats"),
        ("log-odds of a verdict move by, most", float(np.max(moved)), "nats"),
    ]
    return [Row(case, value, None, None, None, unit, 1) for case, value, unit in rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    parser.add_argument("--videos", type=int, default=256)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        exact = collect(folder, args.videos, "exact", args.overrides)
        rounded = collect(folder, args.videos, "rounded", [*args.overrides, "collect.int8_prefixes=true"])
        rows = compare(exact, rounded)
    show("int8_prefixes", rows, args.json, videos=args.videos)


if __name__ == "__main__":
    main()

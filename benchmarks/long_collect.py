"""A collect of many embedded videos: the host memory that it holds from batch to batch, and how the engine fared.

    python benchmarks/long_collect.py [--videos 2000] [--json] [KEY=VALUE ...]

It is `isrdpo run configs/shapes.yaml --until collect` in a process of its own, with KEY=VALUE, in a folder that is
removed again. Memory is what the system says of that process (VmRSS) behind each batch that is written; growth is from
the median of the second eighth of the batches to that of the last.
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rows import Row, show

from isrdpo_jax.runs.atomic import read_jsonl
from isrdpo_jax.runs.layout import RunLayout

ROOT = Path(__file__).parents[1]
MOST_GROWTH = 0.02  # of memory, for "constant"
SLOT_USE = 0.85
_PAUSE_S = 0.2


def resident_bytes(process: int) -> int | None:
    """Of a process that runs; None when it has ended."""
    try:
        status = Path(f"/proc/{process}/status").read_text()
    except OSError:
        return None
    found = re.search(r"VmRSS:\s+(\d+) kB", status)
    return int(found[1]) * 1024 if found else None


def watch(command: list[str], batches: Path) -> dict[int, int]:
    """Runs it; the most memory that it held while so many batches were written.

    Raises:
        SystemExit: it failed.
    """
    held: dict[int, int] = {}
    process = subprocess.Popen(command, stdout=sys.stderr, env={**os.environ, "JAX_PLATFORMS": "cpu"})
    while process.poll() is None:
        now = resident_bytes(process.pid)
        written = sum(1 for _ in batches.glob("*")) if batches.exists() else 0
        if now is not None and written:
            held[written] = max(now, held.get(written, 0))
        time.sleep(_PAUSE_S)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)}: ended with {process.returncode}; what it said is above.")
    return held


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    parser.add_argument("--videos", type=int, default=2000)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        settings = [f"run.dir={name}", "run.name=long", f"data.dir={name}/data", f"data.train_videos={args.videos}"]
        settings += ["run.iterations=1", "evaluation.enabled=false", *args.overrides]
        run = [sys.executable, "-m", "isrdpo_jax", "run", str(ROOT / "configs/shapes.yaml"), *settings]
        layout = RunLayout(Path(name) / "long").iteration(1)
        held = watch([*run, "--until", "collect"], layout.judgements)
        (speed,) = read_jsonl(layout.speed)
    counts = sorted(held)
    eighth = max(1, len(counts) // 8)
    early, late = (statistics.median(held[n] for n in some) for some in (counts[eighth : 2 * eighth], counts[-eighth:]))
    for written in counts:
        print(f"{written} batches: {held[written] / 1e6:.1f} MB", file=sys.stderr)
    rows = [
        Row("memory, late / early", late / 1e6, early / 1e6, early / late, 1 - MOST_GROWTH, "MB", 1),
        Row("slot use", speed["slot_use"], None, speed["slot_use"] / SLOT_USE, 1.0, "share", 1),
        Row("waiting for videos", speed["waiting_share"], None, None, None, "share", 1),
        Row("devices without work", speed["idle_share"], None, None, None, "share", 1),
        Row("padding", speed["padding_share"], None, None, None, "share", 1),
        Row("prefills a video", speed["prefills_per_video"], None, None, None, "", 1),
        Row("videos", args.videos / speed["seconds"], None, None, None, "videos/s", 1),
    ]
    show("long_collect", rows, args.json, videos=args.videos, batches=max(counts), **dict(_settings(args.overrides)))


def _settings(overrides: list[str]) -> list[tuple[str, str]]:
    return [(key, value) for key, _, value in (one.partition("=") for one in overrides)]


if __name__ == "__main__":
    main()

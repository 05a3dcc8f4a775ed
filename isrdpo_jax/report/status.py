"""Where a run stands, read from its manifests: `isrdpo status`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from isrdpo_jax.config import evaluates, load_config
from isrdpo_jax.errors import DataError
from isrdpo_jax.runs.atomic import read_json
from isrdpo_jax.runs.layout import STAGES, IterationLayout, RunLayout, Stage, batch_of, manifest_path
from isrdpo_jax.runs.lock import lock_holder
from isrdpo_jax.runs.manifest import load_manifest
from isrdpo_jax.runs.shared_stages import shared_from


def read_status(run: Path) -> dict[str, Any]:
    """The state of a run as JSON values.

    Raises:
        DataError: there is no run.
    """
    layout = RunLayout(run)
    if not layout.config.is_file():
        raise DataError(f"{run}: there is no run here; `isrdpo run CONFIG` makes one.")
    config = load_config(layout.config).config
    facts = read_json(layout.run_json) if layout.run_json.exists() else {}
    holder = lock_holder(layout.lock)
    stages = STAGES if evaluates(config) else STAGES[:-1]
    rows = [_iteration(one, config.dpo.reference, stages) for one in layout.iterations()]
    last = rows[-1] if rows else None
    finished = last is not None and last["iteration"] == config.run.iterations and not last["next"]
    return {
        "run": str(run),
        "state": "running" if holder else "finished" if finished else "stopped",
        "holder": holder.describe() if holder else None,
        "iterations": config.run.iterations,
        "iteration": last["iteration"] if last else 0,
        "next_stage": last["next"] if last else STAGES[0],
        "eta_seconds": _remaining(layout, config.run.iterations),
        "start": config.start,
        "data": facts.get("data"),
        "videos": facts.get("videos"),
        "skipped": facts.get("skips", {}),
        "stages": {
            "made": dict(Counter(stage for row in rows for stage in row["done"] if stage not in row["shared"])),
            "shared": dict(Counter(stage for row in rows for stage in row["shared"])),
        },
        "rows": rows,
    }


def _remaining(layout: RunLayout, iterations: int) -> float | None:
    """Seconds that the iterations to come take at the pace of the finished ones; None while there is no pace."""
    made = [(one.index, manifest_path(one.checkpoint)) for one in layout.iterations()]
    ends = [(index, path.stat().st_mtime) for index, path in made if path.exists()]  # not all policies are kept
    if len(ends) < 2:
        return None
    (first, began), (last, ended) = ends[0], ends[-1]
    return (ended - began) / (last - first) * (iterations - last)


def _iteration(layout: IterationLayout, reference: str, stages: Sequence[Stage]) -> dict[str, Any]:
    t = layout.index
    wanted = stages if t else stages[len(STAGES) - 1 :]  # the start is only evaluated
    manifests = {stage: load_manifest(layout.manifest(stage)) for stage in wanted if layout.manifest(stage).exists()}
    missing = [stage for stage in wanted if stage not in manifests]
    pairs = manifests["pairs"].counts if "pairs" in manifests else {}
    return {
        "iteration": t,
        "done": list(manifests),
        "shared": {stage: origin for stage, manifest in manifests.items() if (origin := shared_from(manifest))},
        "next": missing[0] if missing else None,
        "policy": f"π_{t}" if t else None,
        "reference": (f"π_{t}" if reference == "previous" else "π_1") if t else None,
        "counts": {stage: manifest.counts for stage, manifest in manifests.items() if manifest.counts},
        "kept": pairs.get("kept"),
        "dropped": {reason: count for reason, count in pairs.items() if reason != "kept"},
        "batches": len({batch_of(part) for part in layout.parts("judgements")}),
    }


def status_table(status: dict[str, Any]) -> Group:
    """The same for people."""
    head = Text(
        f"{status['run']}: {status['state']}, iteration {status['iteration']} of {status['iterations']}"
        + (f", next stage {status['next_stage']}" if status["next_stage"] else "")
        + (f"; held by {status['holder']}" if status["holder"] else "")
        + (f"; about {status['eta_seconds'] / 60:.0f} min to go" if status["eta_seconds"] else "")
    )
    skipped = ", ".join(f"{reason} {count}" for reason, count in status["skipped"].items()) or "none"
    data = Text(
        f"start {status['start']}; data {str(status['data'])[:12]}, {status['videos']} videos; skipped: {skipped}"
    )
    made, shared = (", ".join(f"{s} {n}" for s, n in status["stages"][name].items()) for name in ("made", "shared"))
    stages = Text(f"stages made here: {made or 'none'}" + (f"; shared from other runs: {shared}" if shared else ""))
    table = Table("iteration", "policy", "reference", "done", "pairs kept", "dropped")
    for row in status["rows"]:
        dropped = ", ".join(f"{reason} {count}" for reason, count in row["dropped"].items())
        kept = "" if row["kept"] is None else str(row["kept"])
        done = " ".join(f"{stage}*" if stage in row["shared"] else stage for stage in row["done"])
        table.add_row(str(row["iteration"]), row["policy"], row["reference"], done, kept, dropped)
    return Group(head, data, stages, table)

"""What a run took, from the times at which it wrote its parts: measured figures to stand beside planned ones."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from isrdpo_jax.errors import DataError
from isrdpo_jax.plan.iteration import Stage, stage_seconds
from isrdpo_jax.runs.layout import IterationLayout, PartKind, RunLayout
from isrdpo_jax.schema import Config


def measured(run: Path) -> dict[Stage, dict[str, Any]]:
    """Median seconds of one batch of `collect`, one update's pairs of `reference`, and one update of `optimize`.

    A median, because the first of each also compiles, and a resumed run has gaps.

    Raises:
        DataError: there is no run, or it has not come far enough to show a pace.
    """
    layout = RunLayout(run)
    if not layout.run_json.is_file():
        raise DataError(f"--run {run}: there is no run.")
    gaps: dict[Stage, list[float]] = {"collect": [], "reference": [], "optimize": []}
    for one in layout.iterations():
        gaps["collect"] += _gaps(_part_times(one, "judgements"))
        gaps["reference"] += _gaps(_part_times(one, "reference"))
        gaps["optimize"] += _gaps(_update_times(one))
    found = {stage: {"seconds": statistics.median(some), "of": len(some)} for stage, some in gaps.items() if some}
    if not found:
        raise DataError(f"--run {run}: no stage has written two parts yet, so that nothing is measured.")
    return found


def planned_units(plan: dict[str, Any], config: Config) -> dict[Stage, float | None]:
    """The same units as planned: seconds at the roofline."""
    accumulation_steps = config.dpo.accumulation_steps
    seconds = {row["name"]: row["seconds"] for row in plan["programs"]}
    encode = seconds.get("encode_pairs", seconds.get("encode"))

    def total(*terms: tuple[int, float | None]) -> float | None:
        known = [count * value for count, value in terms if value is not None]
        return sum(known) if len(known) == len(terms) else None

    collect = stage_seconds(seconds, {"collect": plan["calls"]["collect"]})
    batch = config.collect.batch_videos / plan["assumed"]["videos"]
    return {
        "collect": None if collect is None else batch * collect["collect"],
        "reference": total((accumulation_steps, encode), (accumulation_steps, seconds.get("reference"))),
        "optimize": total((accumulation_steps, encode), (1, seconds.get("dpo_step"))),
    }


def _part_times(layout: IterationLayout, kind: PartKind) -> list[float]:
    """When the first process wrote each of its parts; the others write theirs at the same time."""
    first = layout.part(kind, 0, 0).name.rpartition("-")[0]
    return [path.stat().st_mtime for path in layout.parts(kind) if path.name.startswith(f"{first}-")]


def _gaps(times: Iterable[float]) -> list[float]:
    ordered = sorted(times)
    return [later - earlier for earlier, later in zip(ordered, ordered[1:], strict=False)]


def _update_times(layout: IterationLayout) -> list[float]:
    """When each update's metrics were written to TensorBoard."""
    from tensorboardX.proto.event_pb2 import Event

    times: dict[int, float] = {}
    for path in sorted(layout.tensorboard.glob("events*")):
        content, at = path.read_bytes(), 0
        while at + 12 <= len(content):  # length uint64, its checksum, the event, its checksum
            size = int.from_bytes(content[at : at + 8], "little")
            event = Event.FromString(content[at + 12 : at + 12 + size])
            if event.summary.value:
                times[event.step] = event.wall_time
            at += size + 16
    return list(times.values())

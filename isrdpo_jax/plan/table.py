"""A plan as tables for a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table

from isrdpo_jax.plan.chips import GIB

Row = dict[str, Any]
LOOK: Any = {"box": box.SIMPLE_HEAD, "pad_edge": False, "padding": (0, 1, 0, 0), "title_justify": "left"}
_BOUNDS = {"compute": "compute", "hbm": "HBM", "ici": "ICI"}


def plan_tables(plan: dict[str, Any]) -> Group:
    """Memory, work and traffic of every program; then the iteration and the run."""
    hall = plan["hall"]
    held = f"Collect holds {hall['videos']} videos at a time, a call brings {hall['lanes']}; {hall['all_slots']} slots."
    parts: list[RenderableType] = [memory_table(plan), held, "", work_table(plan)]
    if any(row["collectives"] for row in plan["programs"]):
        parts.append(collectives_table(plan))
    parts += [f"{row['name']}: {row['problem'] or row['knob']}" for row in plan["programs"] if not row["fits"]]
    return Group(*parts, *plan["notes"], *_summary(plan))


def memory_table(plan: dict[str, Any]) -> Table:
    sizes = " x ".join(f"{axis} {size}" for axis, size in plan["mesh"].items())
    slice_ = f"{plan['topology']}: {plan['chips']} chips, {plan['devices']} devices, {sizes}, remat {plan['remat']}"
    capacity = _gib(plan["hbm_capacity_bytes"])
    table = Table(
        "program", "arguments", "held", "temp.", "total", "share", "fits", "compiled", "HLO",
        title=f"{slice_}\nHBM of a device, GiB of {capacity}; held: what a run keeps besides", **LOOK,
    )  # fmt: skip
    for row in plan["programs"]:
        table.add_row(
            row["name"],
            *(_gib(row[key]) for key in ("argument_bytes", "held_bytes", "temp_bytes", "hbm_bytes")),
            _percent(row["hbm_share"]),
            "yes" if row["fits"] else "[bold red]no[/]",
            duration(row["compile_seconds"]),
            (row["fingerprint"] or "–")[:8],
        )
    return table


def work_table(plan: dict[str, Any]) -> Table:
    table = Table(
        "program", "calls", "TFLOP useful", "executed", "HBM GB", "ICI GB", "at least", "bound by",
        title="One call, on one device", **LOOK,
    )  # fmt: skip
    for row in plan["programs"]:
        table.add_row(
            row["name"],
            str(row["calls"]),
            *(_scaled(row[key], 1e12) for key in ("flops", "executed_flops")),
            *(_scaled(row[key], 1e9) for key in ("bytes_accessed", "collective_bytes")),
            duration(row["seconds"]),
            _BOUNDS.get(row["bound"], "–"),
        )
    return table


def collectives_table(plan: dict[str, Any]) -> Table:
    kinds = sorted({kind for row in plan["programs"] for kind in row["collectives"]})
    table = Table("program", *kinds, title="Received from other devices in one call, GB", **LOOK)
    for row in plan["programs"]:
        table.add_row(row["name"], *(_scaled(row["collectives"].get(kind), 1e9) for kind in kinds))
    return table


def sweep_table(plans: Sequence[dict[str, Any]]) -> Table:
    """Meshes and remat policies, best first."""
    axes = list(plans[0]["mesh"]) if plans else []
    table = Table(*axes, "remat", "fits", "spare HBM", "iteration at least", "cost", "step bound by", **LOOK)
    for plan in plans:
        step = next((row for row in plan["programs"] if row["name"] == "dpo_step"), None)
        table.add_row(
            *(str(plan["mesh"][axis]) for axis in axes),
            plan["remat"],
            "yes" if plan["fits"] else "no",
            _percent(plan["spare"]),
            duration(plan["iteration"]["seconds"]),
            _dollars(plan["iteration"]["cost"]),
            _BOUNDS.get(step["bound"], "–") if step else "–",
        )
    return table


def measured_table(stages: dict[str, dict[str, Any]]) -> Table:
    """What a run took beside what is planned, for one unit of each stage."""
    units = {"collect": "one batch of videos", "reference": "one update's pairs", "optimize": "one update"}
    table = Table("stage", "unit", "measured (median)", "of", "planned at least", "of roofline", **LOOK)
    for stage, one in stages.items():
        planned = one["planned_seconds"]
        share = None if planned is None or not one["seconds"] else planned / one["seconds"]
        table.add_row(stage, units[stage], duration(one["seconds"]), str(one["of"]), duration(planned), _percent(share))
    return table


def sweep_line(plan: dict[str, Any]) -> str:
    """One candidate of a sweep, as soon as it is known."""
    mesh = ", ".join(f"{axis} {size}" for axis, size in plan["mesh"].items())
    verdict = "fits" if plan["fits"] else "does not fit"
    return (
        f"  {mesh}, remat {plan['remat']}: {verdict}, {_percent(plan['spare'])} of HBM spare, "
        f"iteration at least {duration(plan['iteration']['seconds'])}"
    )


def progress_line(row: Row) -> str:
    """One program, as soon as it is compiled."""
    verdict = "fits" if row["fits"] else "does not fit"
    bound = f", at least {duration(row['seconds'])} ({_BOUNDS[row['bound']]})" if row["bound"] else ""
    return (
        f"  {row['name']}: {_gib(row['hbm_bytes'])} GiB of HBM, {_percent(row['hbm_share'])}, {verdict}{bound}; "
        f"compiled in {duration(row['compile_seconds'])}"
    )


def duration(seconds: float | None) -> str:
    if seconds is None:
        return "–"
    if seconds < 1:
        return f"{1000 * seconds:.3g} ms"
    if seconds < 120:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _summary(plan: dict[str, Any]) -> list[str]:
    once, whole, price, assumed = plan["iteration"], plan["run"], plan["price"], plan["assumed"]
    if plan["spare"] is not None and plan["fits"]:
        fullest = max(plan["programs"], key=lambda row: row["hbm_share"])["name"]
        lines = [f"Everything fits; {_percent(plan['spare'])} of HBM is spare (fullest: {fullest})."]
    else:
        lines = ["It does not fit."]
    if once["seconds"] is not None:
        stages = ", ".join(f"{stage} {duration(seconds)}" for stage, seconds in once["stages"].items())
        at = (
            f" at {price['per_chip_hour']:.2f} {price['currency']} per chip and hour ({price['as_of']}; --price)"
            if price["per_chip_hour"] is not None
            else " (give --price for the cost)"
        )
        lines.append(
            f"One iteration ({assumed['videos']} videos, {assumed['videos'] * assumed['questions']} questions, "
            f"{once['pairs']} pairs): at least {duration(once['seconds'])} ({stages}), {_dollars(once['cost'])}; "
            f"{whole['iterations']} iterations {duration(whole['seconds'])}, {_dollars(whole['cost'])}{at}."
        )
    lines.append(f"Compiled in {plan['compile_seconds']:.0f} s with {_gib(plan['host_bytes'])} GiB of host memory.")
    return lines


def _gib(size: float | None) -> str:
    return "–" if size is None else f"{size / GIB:.2f}"


def _scaled(number: float | None, unit: float) -> str:
    return "–" if number is None else f"{number / unit:.2f}"


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.0f} %"


def _dollars(cost: float | None) -> str:
    return "–" if cost is None else f"{cost:.2f} USD"

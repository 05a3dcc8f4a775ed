"""What a benchmark prints: one row per case, as a table or as the JSON object that all of them share."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Row:
    """One case.

    Attributes:
        ours, peer: medians, in `unit`. ratio: > 1 is better for us.
        floor: the ratio that we promise; None where nothing is promised.
        runs: how many measurements each median is of.
    """

    case: str
    ours: float
    peer: float | None
    ratio: float | None
    floor: float | None
    unit: str
    runs: int


def rate_row(
    case: str, work: float, ours: Sequence[float], peer: Sequence[float], floor: float | None, unit: str
) -> Row:
    """How much work is done in a second, from the seconds that it took in each run."""
    mine, theirs = work / statistics.median(ours), work / statistics.median(peer)
    return Row(case, mine, theirs, mine / theirs, floor, unit, min(len(ours), len(peer)))


def show(name: str, rows: Iterable[Row], as_json: bool, **facts: object) -> None:
    """Prints the table, or one JSON object with the rows and what else is worth knowing."""
    if as_json:
        print(json.dumps({"name": name, "rows": [asdict(row) for row in rows], **facts}))
        return
    print(f"{name}: " + ", ".join(f"{key} {value}" for key, value in facts.items()))
    for row in rows:
        peer, ratio, floor = ("–" if x is None else f"{x:.4g}" for x in (row.peer, row.ratio, row.floor))
        print(f"{row.case:58} {row.ours:>9.4g} {peer:>9} {row.unit:9} ratio {ratio:>6}, floor {floor}, {row.runs} runs")

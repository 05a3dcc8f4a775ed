"""An evaluation's summary for people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from isrdpo_jax.evaluation.verdicts import OK

Row = Mapping[str, Any]


def evaluation_tables(summary: Row) -> Group:
    """The judge; a row per subject; differences to the first subject; differences to earlier judges.

    `bounds` are the accuracies if all answers that were not judged were wrong, or right.
    """
    parts: list[Any] = [Text(_judge(summary["judge"]))]
    if summary["calls"]:
        parts.append(Text(_calls(summary["calls"])))
    table = Table("subject", "judged", "accuracy", "bounds", "score", "words", "not judged")
    for row in summary["rows"]:
        low, high = row["accuracy_if_rest_wrong"], row["accuracy_if_rest_right"]
        left = [f"{outcome} {count}" for outcome, count in row["outcomes"].items() if outcome != OK]
        table.add_row(
            Text(row["subject"]),
            f"{row['judged']}/{row['total']}",
            _share(row["accuracy"]),
            "–" if low is None else f"{low:.1%} … {high:.1%}",
            _number(row["score"]),
            _number(row["words"]),
            Text(", ".join(left)),
        )
    parts.append(table)
    for title, rows in (("against", summary["paired"]), ("against the judge", summary["drift"])):
        if rows:
            table = Table(
                "subject", title, "judged by both", "same verdict", "right now … wrong now", "accuracy", "score"
            )
            for row in rows:
                agreement = row["agreement"]
                table.add_row(
                    Text(row["subject"]),
                    Text(row["against"]),
                    str(row["both"]),
                    "–" if agreement is None else f"{agreement:.1%}",
                    f"{row['turned_right']}, {row['turned_wrong']}",
                    _share(row["accuracy"], signed=True),
                    _number(row["score"], signed=True),
                )
            parts.append(table)
    return Group(*parts)


def _judge(judge: Row) -> str:
    if judge["kind"] == "exact":
        return "Judged by the data set's own rules."
    prompt = {"ours": "with the packaged prompt", "own": "with your own prompt"}.get(
        judge["prompt"], f"with the original prompt ({judge['prompt']})"
    )
    return f"Judged by {judge['name']} (protocol {judge['protocol']}, {prompt})."


def _calls(calls: Row) -> str:
    cost = "" if calls["cost"] is None else f", cost {calls['cost']:.4f}"
    unknown = f", {calls['without_usage']} replies without a count" if calls["without_usage"] else ""
    return (
        f"Calls: {calls['asked']} asked in {calls['requests']} requests, {calls['from_cache']} from the cache; "
        f"{calls['prompt_tokens']} prompt and {calls['completion_tokens']} reply tokens{unknown}{cost}."
    )


def _share(estimate: Row, signed: bool = False) -> str:
    sign = "+" if signed else ""
    return _shown(estimate, lambda value: f"{value:{sign}.1%}")


def _number(estimate: Row, signed: bool = False) -> str:
    sign = "+" if signed else ""
    return _shown(estimate, lambda value: f"{value:{sign}.2f}")


def _shown(estimate: Row, form: Any) -> str:
    if estimate["value"] is None:
        return "–"
    interval = "" if estimate["low"] is None else f" [{form(estimate['low'])}, {form(estimate['high'])}]"
    return form(estimate["value"]) + interval

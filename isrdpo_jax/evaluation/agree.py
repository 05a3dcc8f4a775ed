"""`isrdpo agree`: an iteration's judges beside labels that a user brings.

The result is kept for the report:

    iter_TT/agreement/<name of the file>.json
"""

from __future__ import annotations

import csv
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from isrdpo_jax.config import load_config
from isrdpo_jax.errors import DataError
from isrdpo_jax.evaluation.agreement import TIE, Label, agreement, labels_of
from isrdpo_jax.runs.atomic import read_json, read_jsonl, write_json
from isrdpo_jax.runs.layout import IterationLayout, RunLayout
from isrdpo_jax.stages.collect import read_parts

OWN = "the run's own"
_LABELS: dict[str, Label] = {"1": 0, "2": 1, "tie": TIE}


def agree(run: Path, iteration: int, file: Path) -> dict[str, Any]:
    """Compares every judge of an iteration with every rater of a file.

    Args:
        run: the run's folder.
        iteration: t, from 1.
        file: a CSV with the columns `id`, `label` (1: the first of the two stored responses is better, 2, or tie) and,
            where several people labelled, `rater`.

    Returns:
        {"labels", "iteration", "raters": {rater: {"labels", "unknown_ids", "judges": {judge: figures}}}}; of the labels
        with known ids, a judge's "not_judged" have no verdict of it.

    Raises:
        DataError: the iteration was not collected, or the file cannot be used (with the line).
    """
    layout = RunLayout(run).iteration(iteration)
    if not layout.manifest("collect").exists():
        raise DataError(f"{layout.root}: no finished collect, so that no judge is there to compare.")
    samples = load_config(RunLayout(run).config).config.evaluation.bootstrap_samples
    judgements = read_parts(layout, "judgements")
    videos = {row["id"]: row["video"] for row in judgements}
    judges = {OWN: judgements} | _rejudged(layout)

    def compare(labels: dict[str, Label]) -> dict[str, Any]:
        known = {id: label for id, label in labels.items() if id in videos}
        unknown = sorted(labels.keys() - videos.keys())
        told = {name: labels_of(rows) for name, rows in judges.items()}
        return {
            "labels": len(labels),
            "unknown_ids": {"count": len(unknown), "examples": unknown[:5]},
            "judges": {
                name: {"not_judged": len(known.keys() - ours.keys())}
                | asdict(agreement(known, ours, videos, samples))
                for name, ours in told.items()
            },
        }

    found = {rater: compare(labels) for rater, labels in read_labels(file).items()}
    result = {"labels": str(file), "iteration": iteration, "raters": found}
    write_json(layout.agreement / f"{file.stem}.json", result)
    return result


def read_labels(file: Path) -> dict[str, dict[str, Label]]:
    """Labels by rater and question id; without a column `rater`, all are of one, whose name is that of the file.

    Raises:
        DataError: missing, not UTF-8, without the columns, a label that is none, or a question labelled twice by one.
    """
    try:
        with file.open(encoding="utf-8-sig", newline="") as lines:
            table = csv.DictReader(lines)
            rows = [(table.line_num, row) for row in table]
            columns = table.fieldnames or ()
    except OSError as error:
        raise DataError(f"{file}: the labels cannot be read ({error.strerror}).") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{file}: not a CSV in UTF-8 ({error}).") from error
    if not {"id", "label"} <= set(columns):
        named = ", ".join(columns) or "none"
        raise DataError(f"{file}: its first line must name the columns id and label, not {named}.")
    if not rows:
        raise DataError(f"{file}: there are no labels in it.")
    found: dict[str, dict[str, Label]] = {}
    for line, row in rows:
        label = (row["label"] or "").strip().lower()
        if label not in _LABELS:
            raise DataError(f"{file}, line {line}: the label {row['label']!r} is none of 1, 2 and tie.")
        labels = found.setdefault((row.get("rater") or file.stem).strip(), {})
        if row["id"] in labels:
            raise DataError(f"{file}, line {line}: {row['id']!r} is labelled twice; a column rater tells people apart.")
        labels[row["id"]] = _LABELS[label]
    return found


def agreement_table(found: dict[str, Any]) -> Group:
    """The result for people."""
    table = Table("rater", "judge", "both judged", "equal", "kappa", "decided by both", "equal")
    notes = []
    for rater, result in found["raters"].items():
        for judge, figures in result["judges"].items():
            equal, kappa, decided = (_show(figures[name]) for name in ("equal", "kappa", "decided"))
            counts = [str(figures[name]["count"]) for name in ("equal", "decided")]
            table.add_row(Text(rater), Text(judge), counts[0], equal, kappa, counts[1], decided)
        unknown = result["unknown_ids"]
        if unknown["count"]:
            named = ", ".join(unknown["examples"])
            notes.append(
                Text(f"{rater}: {unknown['count']} of {result['labels']} labels are of unknown ids, such as {named}.")
            )
    return Group(table, *notes)


def _show(estimate: dict[str, Any]) -> str:
    if estimate["value"] is None:
        return "–"
    interval = "" if estimate["low"] is None else f" [{estimate['low']:.2f}, {estimate['high']:.2f}]"
    return f"{estimate['value']:.2f}{interval}"


def _rejudged(layout: IterationLayout) -> dict[str, list[dict[str, Any]]]:
    """What `isrdpo judge` kept, by what each judge does otherwise."""
    found = {}
    for path in sorted(layout.rejudged.glob("*.jsonl")):
        changed = read_json(path.with_suffix(".json"))["changed"]
        found[", ".join(f"{key} {value}" for key, value in changed.items()) or "unchanged"] = read_jsonl(path)
    return found

"""How two judges of the same pairs agree: the share of equal verdicts, and Cohen's kappa, which takes off chance.

Cohen, "A coefficient of agreement for nominal scales", Educational and Psychological Measurement 20(1), 1960.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from isrdpo_jax.evaluation.bootstrap import Estimate, mean_interval, statistic_interval

Label = Literal[0, 1, 2]  # the first response, the second, or a tie
TIE: Label = 2
LABELS = 3


@dataclass(frozen=True)
class Agreement:
    """Two judges on the pairs that both judged.

    Attributes:
        equal: share of pairs with the same label, ties among them.
        kappa: 1 is full agreement, 0 that of chance; no value where one label is all that was given.
        decided: share of equal verdicts among the pairs where neither says tie.
        table: counts [theirs][ours] by label.
    """

    equal: Estimate
    kappa: Estimate
    decided: Estimate
    table: tuple[tuple[int, ...], ...]


def agreement(
    theirs: Mapping[str, Label], ours: Mapping[str, Label], videos: Mapping[str, str], samples: int
) -> Agreement:
    """Compares two judges, joined by question id.

    Args:
        theirs: labels by question id.
        ours: the same of the other judge.
        videos: the video of every question that `ours` has.
        samples: how many times the videos are drawn for the intervals.
    """
    ids = sorted(theirs.keys() & ours.keys())
    groups = [videos[id] for id in ids]
    pairs = np.array([(theirs[id], ours[id]) for id in ids], np.int64).reshape(-1, 2)
    cells = np.eye(LABELS * LABELS)[pairs[:, 0] * LABELS + pairs[:, 1]]  # [rows, cells]: one 1 in each row
    same = (pairs[:, 0] == pairs[:, 1]).astype(np.float64)
    sure = (pairs != TIE).all(axis=1).astype(np.float64)
    table = cells.sum(axis=0).astype(int).reshape(LABELS, LABELS).tolist()
    return Agreement(
        equal=mean_interval(same, np.ones(len(ids)), groups, samples, seed=0),
        kappa=statistic_interval(list(cells.T), cohen_kappa, groups, samples, seed=0),
        decided=mean_interval(same * sure, sure, groups, samples, seed=0),
        table=tuple(map(tuple, table)),
    )


def cohen_kappa(*cells: np.ndarray) -> np.ndarray:
    """Kappa of a square table of counts, given row by row; NaN where chance alone gives full agreement."""
    side = round(len(cells) ** 0.5)
    table = np.stack([np.asarray(cell, np.float64) for cell in cells]).reshape(side, side, *np.shape(cells[0]))
    total = table.sum(axis=(0, 1))
    with np.errstate(invalid="ignore", divide="ignore"):
        observed = np.einsum("ii...->...", table) / total
        chance = (table.sum(axis=1) * table.sum(axis=0)).sum(axis=0) / total**2
        return np.where(chance < 1, (observed - chance) / (1 - chance), np.nan)


def labels_of(rows: Sequence[Mapping]) -> dict[str, Label]:
    """A judge's rows as labels: its verdicts and its ties; what it could not judge has none."""
    found: dict[str, Label] = {}
    for row in rows:
        if row["verdict"] is not None:
            found[row["id"]] = 1 if row["verdict"] else 0
        elif row["reason"] == "tie":
            found[row["id"]] = TIE
    return found

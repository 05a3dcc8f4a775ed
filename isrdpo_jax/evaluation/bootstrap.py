"""Percentile bootstrap over videos: every reported number carries its denominator and a 95 % interval.

Answers about one video are not independent, so whole videos are drawn with replacement (a cluster bootstrap: Field and
Welsh, "Bootstrapping clustered data", JRSS B 69(3), 2007). A measure is a ratio of sums, never a mean of means: the
share of false statements is all false statements over all statements, in the data as in every draw.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import numpy as np

CONFIDENCE = 0.95
_DRAWS_AT_ONCE = 64  # bounds the memory of a draw: 64 x groups weights


@dataclass(frozen=True)
class Estimate:
    """A measured number.

    Attributes:
        value: the ratio of sums; None where nothing was counted.
        count: what the value is an average over (its denominator); 0 where nothing was counted.
        low: lower end of the 95 % interval; None where fewer than two videos were counted: they show no spread.
        high: upper end of the interval; None together with `low`.
    """

    value: float | None
    count: int
    low: float | None
    high: float | None

    def to_json(self) -> dict[str, float | int | None]:
        """The four fields as JSON values; never NaN or infinite."""
        return asdict(self)


NOTHING = Estimate(value=None, count=0, low=None, high=None)


def mean_interval(sums: np.ndarray, counts: np.ndarray, groups: Sequence, samples: int, seed: int) -> Estimate:
    """A ratio of sums with its bootstrap interval over groups.

    Args:
        sums: float [rows], the numerators, for example false statements of each answer.
        counts: float or int [rows], the denominators, for example statements of each answer.
        groups: [rows], the video that each row belongs to; any hashable ids.
        samples: how many times the groups are drawn.
        seed: makes the interval reproducible; equal input gives an equal interval.

    Returns:
        sum(sums) / sum(counts), with sum(counts) as `count`.

    Raises:
        ValueError: if the lengths differ, a number is not finite, or a denominator is negative.
    """
    totals = _totals_by_group(groups, sums, counts)
    totals = totals[:, totals.any(axis=0)]  # a video that was not counted says nothing about spread
    if not totals[1].any():
        return NOTHING
    value, low, high = _bootstrap(totals, _ratio, samples, seed)
    return Estimate(value, round(float(totals[1].sum())), low, high)


def statistic_interval(
    columns: Sequence[np.ndarray], statistic: Callable[..., np.ndarray], groups: Sequence, samples: int, seed: int
) -> Estimate:
    """Any statistic of sums with its bootstrap interval over groups.

    Args:
        columns: float or int [rows] each, not negative.
        statistic: takes the sum of every column, scalars or all of one shape; NaN where it has no value.
        groups: [rows], the video that each row belongs to.
        samples: how many times the groups are drawn.
        seed: makes the interval reproducible.

    Returns:
        The statistic, with the number of rows as `count`.
    """
    if not len(groups):
        return NOTHING
    value, low, high = _bootstrap(_totals_by_group(groups, *columns), statistic, samples, seed)
    return NOTHING if np.isnan(value) else Estimate(value, len(groups), low, high)


def paired_difference(
    sums: np.ndarray,
    counts: np.ndarray,
    other_sums: np.ndarray,
    other_counts: np.ndarray,
    groups: Sequence,
    samples: int,
    seed: int,
) -> Estimate:
    """How much a ratio of sums exceeds another one that was measured on the same videos.

    Every draw takes the same videos on both sides, so that what makes a video easy or hard cancels. A video that was
    not counted on both sides (a denominator of 0) is left out of both.

    Args:
        sums: float [rows], numerators of the first measure.
        counts: float or int [rows], its denominators; 0 where the row exists only on the other side.
        other_sums: float [rows], numerators of the second measure, row by row about the same record.
        other_counts: float or int [rows], its denominators.
        groups: [rows], the video that each row belongs to.
        samples: how many times the groups are drawn.
        seed: makes the interval reproducible.

    Returns:
        The first ratio minus the second; `count` is the number of videos counted on both sides.

    Raises:
        ValueError: as `mean_interval`.
    """
    totals = _totals_by_group(groups, sums, counts, other_sums, other_counts)
    totals = totals[:, (totals[1] > 0) & (totals[3] > 0)]
    if not totals.size:
        return NOTHING

    def difference(
        sums: np.ndarray, counts: np.ndarray, other_sums: np.ndarray, other_counts: np.ndarray
    ) -> np.ndarray:
        return _ratio(sums, counts) - _ratio(other_sums, other_counts)

    value, low, high = _bootstrap(totals, difference, samples, seed)
    return Estimate(value, totals.shape[1], low, high)


def crossed_interval(
    sums: np.ndarray,
    counts: np.ndarray,
    samples: int,
    seed: int,
    *,
    other: tuple[np.ndarray, np.ndarray] | None = None,
) -> Estimate:
    """A ratio of sums over runs that were evaluated on the same videos; every draw takes some runs and some videos.

    Runs and videos are drawn independently (Owen, "The pigeonhole bootstrap", Ann. Appl. Stat. 1(2), 2007), so that the
    interval holds for other seeds as well as for other videos. Of a few runs it is a rough one.

    Args:
        sums: float [runs, videos], numerators. counts: float or int [runs, videos], denominators.
        samples: how many times runs and videos are drawn.
        other: sums and counts of what is subtracted, of the same runs (by seed) and videos.

    Returns:
        The ratio, or the difference of the two; `count` is the sum of the denominators.
    """
    tables = [np.asarray(table, np.float64) for table in (sums, counts, *(other or ()))]
    runs, videos = tables[0].shape
    if any(table.shape != (runs, videos) for table in tables):
        raise ValueError(f"tables of shapes {[table.shape for table in tables]}")

    def statistic(of_runs: np.ndarray, of_videos: np.ndarray) -> np.ndarray:
        totals = [np.einsum("dr,rv,dv->d", of_runs, table, of_videos) for table in tables]
        return _ratio(*totals[:2]) - (_ratio(*totals[2:]) if other else 0.0)

    value = float(statistic(np.ones((1, runs)), np.ones((1, videos)))[0])
    if not np.isfinite(value):
        return NOTHING
    count = round(float(tables[1].sum()))
    if videos < 2:
        return Estimate(value, count, None, None)
    rng = np.random.default_rng(seed)
    of_runs = rng.multinomial(runs, np.full(runs, 1 / runs), size=samples)
    of_videos = rng.multinomial(videos, np.full(videos, 1 / videos), size=samples)
    drawn = statistic(of_runs, of_videos)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(drawn[np.isfinite(drawn)], [tail, 1 - tail])
    return Estimate(value, count, float(low), float(high))


def _totals_by_group(groups: Sequence, *columns: np.ndarray) -> np.ndarray:
    """float64 [columns, groups]: each column summed within every group, groups in sorted order."""
    arrays = [np.asarray(column, dtype=np.float64) for column in columns]
    if any(array.shape != (len(groups),) for array in arrays):
        raise ValueError(f"{len(groups)} groups, but columns of shapes {[array.shape for array in arrays]}")
    if not all(np.isfinite(array).all() for array in arrays):
        raise ValueError("numerators and denominators must be finite")
    if any((array < 0).any() for array in arrays[1::2]):
        raise ValueError("a denominator is negative")
    # Sorted, so that the draws do not depend on the order in which rows were collected.
    position = {group: i for i, group in enumerate(sorted(set(groups)))}
    index = np.fromiter((position[group] for group in groups), dtype=np.int64, count=len(groups))
    return np.stack([np.bincount(index, weights=array, minlength=len(position)) for array in arrays])


def _bootstrap(
    totals: np.ndarray, statistic: Callable[..., np.ndarray], samples: int, seed: int
) -> tuple[float, float | None, float | None]:
    """The statistic of the column totals, and its percentile interval when the groups are drawn with replacement."""
    value = float(statistic(*totals.sum(axis=1)))
    groups = totals.shape[1]
    if groups < 2:
        return value, None, None
    rng = np.random.default_rng(seed)
    draws = []
    for start in range(0, samples, _DRAWS_AT_ONCE):
        weights = rng.multinomial(groups, np.full(groups, 1 / groups), size=min(_DRAWS_AT_ONCE, samples - start))
        draws.append(statistic(*(totals @ weights.T)))
    drawn = np.concatenate(draws)
    drawn = drawn[np.isfinite(drawn)]  # a draw may hold only groups without a denominator
    if not drawn.size:
        return value, None, None
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(drawn, [tail, 1 - tail])
    return value, float(low), float(high)


def _ratio(sums: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """sums / counts, NaN where the denominator is 0."""
    return np.divide(sums, counts, out=np.full(np.shape(sums), np.nan), where=np.asarray(counts) > 0)

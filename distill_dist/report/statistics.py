"""How far two groups of runs differ, and whether that is more than chance: over rows, and over seeds."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

RESAMPLES = 10_000
_CHUNK = 4_000_000  # draws at a time: 32 MB


class Scored(Protocol):
    """A metric of one run as a function of sums over rows, so that rows can be drawn again."""

    @property
    def columns_ND(self) -> np.ndarray:
        """float [rows, D]."""
        ...

    @property
    def of(self) -> Callable[[np.ndarray], np.ndarray]:
        """Sums over rows [..., D] -> values [...]."""
        ...


@dataclass(frozen=True)
class Difference:
    """``value`` ours − theirs, its 95 % interval, and the two-sided ``p`` of no difference."""

    value: float
    low: float
    high: float
    p: float


def paired_bootstrap(
    ours: Sequence[Sequence[Scored]],
    theirs: Sequence[Sequence[Scored]],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Difference:
    """Of the means over each side's seeds, all scored on the same rows in the same order; rows are drawn anew.

    A side has the runs of each of its seeds, which count once, by their mean. The interval is the percentile one; p is
    twice the smaller share of draws on one side of 0, each with one draw added (Efron and Tibshirani 1993, §15.4:
    never 0). It says whether other rows of the same kind would have shown the difference, not whether other seeds
    would: see :func:`seed_test`.
    """
    runs = [run for of_seed in (*ours, *theirs) for run in of_seed]
    assert len({len(run.columns_ND) for run in runs}) == 1, "other rows"
    columns = np.concatenate([run.columns_ND for run in runs], axis=1).astype(np.float64)
    splits = np.cumsum([run.columns_ND.shape[1] for run in runs])[:-1]

    def difference(sums: np.ndarray) -> np.ndarray:
        parts = iter(np.split(sums, splits, axis=-1))

        def mean(side: Sequence[Sequence[Scored]]) -> np.ndarray:
            seeds = [np.mean([run.of(next(parts)) for run in of_seed], axis=0) for of_seed in side]
            return np.asarray(np.mean(seeds, axis=0))

        return mean(ours) - mean(theirs)

    drawn = difference(_drawn_sums(columns, resamples=resamples, seed=seed))
    low, high = np.quantile(drawn, (0.025, 0.975))
    least = min(int((drawn <= 0).sum()), int((drawn >= 0).sum())) + 1
    value = float(difference(columns.sum(axis=0)))
    return Difference(value, float(low), float(high), min(1.0, 2 * least / (resamples + 1)))


def _drawn_sums(columns: np.ndarray, *, resamples: int, seed: int) -> np.ndarray:
    """Sums of the columns over as many rows, drawn with replacement; float64 [resamples, columns].

    Rows that are alike are drawn together, as one multinomial count: right-or-wrong of a few runs has few patterns,
    and 10,000 resamples of 40,000 rows then take milliseconds instead of seconds.
    """
    rng = np.random.default_rng(seed)
    patterns, times = np.unique(columns, axis=0, return_counts=True)
    rows = len(columns)
    if len(patterns) * 20 < rows:
        return rng.multinomial(rows, times / rows, size=resamples).astype(np.float64) @ patterns
    found = np.empty((resamples, columns.shape[1]))
    at_once = max(1, _CHUNK // rows)
    for first in range(0, resamples, at_once):
        drawn = rng.integers(0, rows, size=(min(at_once, resamples - first), rows))
        weights = np.stack([np.bincount(row, minlength=rows) for row in drawn]).astype(np.float64)
        found[first : first + len(drawn)] = weights @ columns
    return found


# ------------------------------------------------------------------ seeds


@dataclass(frozen=True)
class SeedTest:
    """``p`` two-sided of Student's t; ``kind`` `paired` over seeds that both have, else `Welch`."""

    p: float
    kind: str
    seeds: int  # compared: pairs, or both sides together


def seed_test(ours: Mapping[int, float], theirs: Mapping[int, float]) -> SeedTest | None:
    """Whether the metric differs over seeds; None with fewer than two on a side, or where nothing varies.

    Equal seeds make pairs, since they share the order of the data and what is drawn at the start.
    """
    shared = sorted(set(ours) & set(theirs))
    if len(shared) >= 2:
        differences = np.array([ours[seed] - theirs[seed] for seed in shared])
        if _varies(differences):
            from scipy.stats import (
                ttest_1samp,
            )  # half a second, which a page of single seeds need not wait for

            return SeedTest(float(ttest_1samp(differences, 0.0).pvalue), "paired", len(shared))
        return SeedTest(1.0, "paired", len(shared)) if not differences.any() else None
    left, right = np.array(list(ours.values())), np.array(list(theirs.values()))
    if min(len(left), len(right)) < 2 or not (_varies(left) or _varies(right)):
        return None
    from scipy.stats import ttest_ind

    found = float(ttest_ind(left, right, equal_var=False).pvalue)
    return SeedTest(found, "Welch", len(left) + len(right))


def _varies(values: np.ndarray) -> bool:
    """More than rounding: a standard deviation of 1e-17 would make anything significant."""
    return bool(np.ptp(values) > 1e-12 * max(1.0, float(np.abs(values).max())))


def deviation(values: Sequence[float]) -> float | None:
    """Standard deviation over runs, n − 1 below; None for one."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else None


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted for their number, in the same order (Holm 1979): what is below 0.05 errs once in 20 pages at most."""
    order = sorted(range(len(p_values)), key=lambda place: p_values[place])
    adjusted, so_far = [math.nan] * len(p_values), 0.0
    for rank, place in enumerate(order):
        so_far = max(so_far, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = so_far
    return adjusted

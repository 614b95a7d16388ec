"""How far a number of a split would move on other rows of the same kind: percentile bootstrap over rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TypeVar

import numpy as np

from distill_dist.evaluation.summed import Floats, Summed

METHOD = "percentile"
CONFIDENCE = 0.95
_DRAWN_AT_ONCE = 1 << 21  # row numbers: 16 MiB

K = TypeVar("K")


def intervals(
    metrics: Mapping[K, Summed], *, resamples: int, seed: int
) -> dict[K, tuple[float, float] | None]:
    """The middle 95 % of every metric over ``resamples`` splits of as many rows, drawn with replacement.

    All metrics are of the same rows and see the same draws, those of `numpy.random.default_rng(seed)`. As
    `scipy.stats.bootstrap(method="percentile")`, for all of them at once and without running anything N times: a draw
    is a weight for every row, so its sums are one product of matrices. None for a metric that no draw has a value of.
    """
    columns = {id(metric.columns_ND): metric.columns_ND for metric in metrics.values()}
    if not columns:
        return {}
    rows = len(next(iter(columns.values())))
    parts: dict[int, list[Floats]] = {key: [] for key in columns}
    for counts_RN in _counts(rows, resamples=resamples, seed=seed):
        for key, columns_ND in columns.items():
            parts[key].append(counts_RN @ columns_ND)
    sums = {key: np.concatenate(found) for key, found in parts.items()}
    return {name: _middle(metric.of(sums[id(metric.columns_ND)])) for name, metric in metrics.items()}


def _counts(rows: int, *, resamples: int, seed: int) -> Iterator[Floats]:
    """How often each row was drawn, float64 [R, N], ``resamples`` in all; the split into parts changes no draw."""
    generator = np.random.default_rng(seed)
    part = max(1, _DRAWN_AT_ONCE // rows)
    for first in range(0, resamples, part):
        size = min(part, resamples - first)
        drawn_RN = generator.integers(0, rows, (size, rows))
        cell_RN = drawn_RN + rows * np.arange(size)[:, None]
        yield np.bincount(cell_RN.ravel(), minlength=size * rows).reshape(size, rows).astype(np.float64)


def _middle(values_R: Floats) -> tuple[float, float] | None:
    known = values_R[~np.isnan(values_R)]
    if not len(known):
        return None
    low, high = np.quantile(known, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)

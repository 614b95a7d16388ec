"""λ per row: how far each relies on its teacher, by its difficulty (METHOD.md §4). Rules, controls, the mean."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from distill_dist.curriculum.order import rows_at

Rule = Literal["gate", "ramp", "bell", "weighted"]
Control = Literal["none", "mean_matched", "permuted"]
PercentileAt = Callable[[np.ndarray], np.ndarray]
"""rows int64 [n] -> difficulty percentile [n] in [0, 1] over the whole set; rows without a score have one too."""
ColumnAt = Callable[[str, np.ndarray], np.ndarray]
"""(column of the snapshot, rows int64 [n]) -> its values [n]; NaN where the row has none."""

# Of order.rows_at: no epoch of the training order, so that who gets whose λ says nothing of when. The same in every
# epoch: what a row gets then stays one row's λ over the run, as without the control.
_PERMUTATION = -1
_ONE = 1 << 32  # λ = 1 as an integer
_MOST_ROWS = (1 << 31) - 1  # of λ = 1, so that their sum fits an int64


def gate(percentile: np.ndarray, *, threshold: float, minimum: float, maximum: float) -> np.ndarray:
    """λ float32 [n]: ``maximum`` where the percentile is above ``threshold``, else ``minimum``."""
    return np.where(percentile > threshold, np.float32(maximum), np.float32(minimum))


def ramp(percentile: np.ndarray, *, minimum: float, maximum: float) -> np.ndarray:
    """λ float32 [n], linear in the percentile: ``minimum`` at 0, ``maximum`` at 1."""
    return (minimum + (maximum - minimum) * percentile.astype(np.float64)).astype(np.float32)


def bell(probability: np.ndarray, *, minimum: float, maximum: float) -> np.ndarray:
    """λ float32 [n]: ``maximum`` at probability ½, ``minimum`` at 0 and 1; NaN where the probability is."""
    p = probability.astype(np.float64)
    return (minimum + (maximum - minimum) * 4 * p * (1 - p)).astype(np.float32)


def weighted(loss: np.ndarray, teacher_loss: np.ndarray) -> np.ndarray:
    """λ = 1 − exp(−loss / teacher_loss) float32 [n] of cross-entropies ≥ 0; NaN where either is NaN.

    A teacher that is certain and right (0) gets λ = 1, the limit. Where the student's loss is 0 too, λ is 0 as for
    every other teacher: nothing is left to learn. Two infinite losses have no ratio: NaN.
    """
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        ratio = loss.astype(np.float64) / teacher_loss.astype(np.float64)
    ratio[(loss == 0) & (teacher_loss == 0)] = 0.0
    return (-np.expm1(-ratio)).astype(np.float32)


def largest(rule: Rule, maximum: float) -> float:
    """λ_max, which `reliance.scale_alignment` divides by: ``maximum``, but `weighted` knows none and reaches 1."""
    return 1.0 if rule == "weighted" else maximum


def fixed_point_sum(reliance: np.ndarray) -> int:
    """Σ round(λ·2³²) of at most 2³¹ − 1 values in [0, 1]: integers, so the same for any split into processes.

    Below 2⁻⁸ a float32 is finer than 2⁻³²: the mean is off by at most 2⁻³³.
    """
    return int(np.rint(reliance.astype(np.float64) * _ONE).astype(np.int64).sum())


def mean_from(total: int, rows: int) -> float:
    """The mean λ of ``rows`` rows whose ``fixed_point_sum`` is ``total`` (over all processes)."""
    assert 0 < rows <= _MOST_ROWS, rows
    return total / (rows * _ONE)


@dataclass(frozen=True)
class Reliance:
    """λ of any rows under one snapshot, the same on every process. Both callables None: before the first snapshot.

    A row of which the snapshot lacks what `bell` or `weighted` reads (never served, or not finite) has ``initial``,
    as every row had before the first snapshot; `gate` and `ramp` read its rank, which `curriculum.unscored` sets.
    `bell` reads p of the true class: the score where that is one (``score_is_probability``), else exp(−loss).
    """

    rule: Rule
    initial: float
    minimum: float
    maximum: float
    threshold: float  # of `gate`
    num_rows: int
    seed: int  # of `permuted`
    control: Control = "none"
    mean: float | None = None  # of λ over all rows, by the rule alone: for `mean_matched`
    score_is_probability: bool = True
    percentile_at: PercentileAt | None = None
    column_at: ColumnAt | None = None

    def of(self, rows: np.ndarray) -> np.ndarray:
        """λ float32 [n] of ``rows`` (int64 [n]), the control included."""
        if self.control == "mean_matched":
            assert self.mean is not None, "the mean is summed over all rows first"
            return np.full(len(rows), self.mean, dtype=np.float32)
        if self.control == "permuted":
            rows = rows_at(rows, self.num_rows, seed=self.seed, epoch=_PERMUTATION)
        return self.ruled(rows)[0]

    def ruled(self, rows: np.ndarray) -> tuple[np.ndarray, int]:
        """(λ float32 [n] by the rule alone, how many of them are ``initial`` for want of a value)."""
        found = self._by_rule(rows)
        unknown = np.isnan(found)
        found[unknown] = self.initial
        return found, int(unknown.sum())

    def _by_rule(self, rows: np.ndarray) -> np.ndarray:
        """NaN where the rule has nothing to go by."""
        if self.percentile_at is None and self.column_at is None:
            return np.full(len(rows), np.nan, dtype=np.float32)
        if self.rule in ("gate", "ramp"):
            assert self.percentile_at is not None
            percentile = self.percentile_at(rows)
            assert not np.isnan(percentile).any(), "every row has a rank"
            if self.rule == "ramp":
                return ramp(percentile, minimum=self.minimum, maximum=self.maximum)
            return gate(percentile, threshold=self.threshold, minimum=self.minimum, maximum=self.maximum)
        assert self.column_at is not None
        if self.rule == "bell":
            return bell(self._probability_at(rows), minimum=self.minimum, maximum=self.maximum)
        return weighted(self.column_at("loss", rows), self.column_at("teacher_loss", rows))

    def _probability_at(self, rows: np.ndarray) -> np.ndarray:
        assert self.column_at is not None
        if self.score_is_probability:
            return self.column_at("score", rows)
        return np.exp(-self.column_at("loss", rows).astype(np.float64))

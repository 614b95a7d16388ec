"""What the snapshots say about the rows: the extremes, likely wrong labels, who moved, who was served how often.

Everything goes block by block in constant memory. What several processes count comes as int64 arrays that are
summed between them; the rest is derived from the sums. Equal values are ordered by row number, so that every
number of processes and every order of blocks lists the same rows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from distill_dist.curriculum.scores import Columns

BINS = 50  # of a histogram: 0.02 wide on [0, 1]
PARTS = 10  # deciles of difficulty
LEAST_LOG = -8.0  # left end of −loss: p = 3e-4; what lies beyond is counted in the first bin
# Variance of a draw from [0, 1] of which nothing is known: the one observation added to every row's own, so that
# a row seen once does not pass for one that never changed.
_UNKNOWN_VARIANCE = 1 / 12


# ------------------------------------------------------------------ lists of rows


@dataclass(frozen=True)
class Listed:
    """Rows in order, the first the most so: ``rows`` int64 and what ranked them, ``values`` float64, both [k]."""

    rows: np.ndarray
    values: np.ndarray


class Largest:
    """The ``k`` rows of the largest values among all that were added; equal values by row number, NaN never."""

    def __init__(self, k: int) -> None:
        """``k`` at least 1; memory and time per block grow with it."""
        assert k >= 1, k
        self._k = k
        self._rows = np.zeros(0, np.int64)
        self._values = np.zeros(0)

    def add(self, first_row: int, values: np.ndarray) -> None:
        """``values`` [n] of the rows from ``first_row`` on."""
        fit = np.flatnonzero(values >= self._least(values))  # NaN compares false
        rows = np.concatenate([self._rows, first_row + fit])
        found = np.concatenate([self._values, values[fit].astype(np.float64)])
        best = np.lexsort((rows, -found))[: self._k]
        self._rows, self._values = rows[best], found[best]

    def listed(self) -> Listed:
        """The rows found so far, at most ``k``."""
        return Listed(self._rows, self._values)

    def _least(self, values: np.ndarray) -> float:
        """What a value must reach; without it every block would be sorted in full."""
        known = values[~np.isnan(values)]
        own = float(np.partition(known, -self._k)[-self._k]) if len(known) >= self._k else -math.inf
        return max(own, float(self._values[-1])) if len(self._values) == self._k else own


class Extremes:
    """The lists of a study, filled in one pass over the blocks."""

    def __init__(self, k: int) -> None:
        """At most ``k`` rows in each list."""
        self._hardest, self._easiest, self._forgotten, self._suspects = (Largest(k) for _ in range(4))

    def add(self, first_row: int, columns: Columns, labels: np.ndarray) -> None:
        """The block from ``first_row`` on; ``labels`` [n] are the class numbers that it is trained with."""
        self._hardest.add(first_row, -columns.score)
        self._easiest.add(first_row, columns.score)
        self._forgotten.add(first_row, forgetfulness(columns))
        self._suspects.add(first_row, suspicion(columns, labels))

    def hardest(self) -> Listed:
        """Lowest score first; ``values`` are the scores."""
        found = self._hardest.listed()
        return Listed(found.rows, -found.values)

    def easiest(self) -> Listed:
        """Highest score first; ``values`` are the scores."""
        return self._easiest.listed()

    def most_forgotten(self) -> Listed:
        """Most often right and then wrong first; ``values`` are how often. Rows never forgotten are left out."""
        found = self._forgotten.listed()
        return Listed(found.rows, np.floor(found.values))

    def suspects(self) -> Listed:
        """Most likely mislabelled first; ``values`` are the :func:`suspicion`. Rows without any are left out."""
        return self._suspects.listed()


def forgetfulness(columns: Columns) -> np.ndarray:
    """Forgetting events, and below the point how low p(true) was on average; float64 [n], NaN where none.

    Toneva et al. 2019. They count rows that were never learnt as forgotten without end; here those stand among
    the hardest.
    """
    # half of what is missing to 1: in [0, ½], so that it orders equal counts and never reaches the next
    below = (1 - np.clip(columns.mean.astype(np.float64), 0, 1)) / 2
    return np.where(columns.forgotten > 0, columns.forgotten + below, np.nan)


def suspicion(columns: Columns, labels: np.ndarray) -> np.ndarray:
    """How much a row looks mislabelled, float64 [n] in (0, 1); NaN where nothing speaks for it.

    (1 − mean − deviation) · (1 − p): p(true label) stayed low over the snapshots and changed little (Dataset
    Cartography's hard-to-learn corner, Swayamdipta et al. 2020), and the other classes hold the rest of the
    newest snapshot's probability, while the model predicts one of them. Rows that no snapshot has seen get NaN.
    """
    count = columns.count.astype(np.float64)
    variance = (columns.m2.astype(np.float64) + _UNKNOWN_VARIANCE) / (count + 1)
    stayed_low = 1 - columns.mean.astype(np.float64) - np.sqrt(variance)
    others = -np.expm1(-columns.loss.astype(np.float64))
    found = stayed_low * others
    # a row that no snapshot has seen has no loss, so NaN, which compares false
    applies = (columns.predicted != labels) & (stayed_low > 0) & (found > 0)
    return np.where(applies, found, np.nan)


# ------------------------------------------------------------------ counts that processes sum


def confidence_edges(measure: str, num_classes: int) -> np.ndarray:
    """Edges of the bins that hold a measure's confidence, float64 [BINS + 1]; fixed, so that epochs compare.

    Probabilities and margins lie in [0, 1], −entropy in [−ln C, 0]; −loss has no lower end: :data:`LEAST_LOG`.
    Scores from a file may be anything: KeyError.
    """
    unit = (0.0, 1.0)
    ends = {
        "true_probability": unit,
        "max_probability": unit,
        "margin": unit,
        "entropy": (-math.log(num_classes), 0.0),
        "loss": (LEAST_LOG, 0.0),
    }
    return np.linspace(*ends[measure], BINS + 1)


LAMBDA_EDGES = np.linspace(0.0, 1.0, BINS + 1)


def histogram(values: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """How many of ``values`` lie in each bin, int64 [bins]; those beyond an end in its bin, NaN nowhere.

    A bin holds its left edge; the last holds both.
    """
    known = values[~np.isnan(values)]
    inside = np.clip(np.searchsorted(edges, known, side="right") - 1, 0, len(edges) - 2)
    return np.bincount(inside, minlength=len(edges) - 1)


def class_counts(labels: np.ndarray, admitted: np.ndarray, num_classes: int) -> np.ndarray:
    """Admitted rows of each class, int64 [num_classes]; ``admitted`` bool [n]."""
    return np.bincount(labels[admitted], minlength=num_classes)


def transitions(before: np.ndarray, after: np.ndarray, parts: int = PARTS) -> np.ndarray:
    """Rows that went from part i to part j of the difficulties, int64 [parts, parts].

    ``before`` and ``after`` [n] are the parts (say, deciles) of the same rows in two snapshots.
    """
    pairs = before.astype(np.int64) * parts + after
    return np.bincount(pairs, minlength=parts * parts).reshape(parts, parts)


# ------------------------------------------------------------------ what the sums mean


@dataclass(frozen=True)
class Movement:
    """Between two snapshots: rows in another part than before, their share, the mean distance in parts, and ρ."""

    moved: int
    share: float
    distance: float
    spearman: float
    """Rank correlation of the parts, ties at their mean rank; NaN where all rows share one part."""


def movement(transitions: np.ndarray) -> Movement:
    """The summary of :func:`transitions`, summed over all rows; at least one."""
    rows = int(transitions.sum())
    assert rows > 0, "no rows"
    parts = np.arange(len(transitions))
    moved = rows - int(np.trace(transitions))
    distance = float((transitions * np.abs(parts[:, None] - parts)).sum() / rows)
    return Movement(moved, moved / rows, distance, _spearman(transitions))


def _spearman(table: np.ndarray) -> float:
    """Pearson's correlation of the mean ranks of a contingency table's rows and columns."""
    before, after = _centred_ranks(table.sum(1)), _centred_ranks(table.sum(0))
    spread = float(table.sum(1) @ before**2) * float(table.sum(0) @ after**2)
    return float(before @ table @ after) / math.sqrt(spread) if spread > 0 else math.nan


def _centred_ranks(counts: np.ndarray) -> np.ndarray:
    """Mean rank of each part's rows, the mean of all subtracted; float64, which a square of 1e9 rows needs."""
    ends = np.cumsum(counts).astype(np.float64)
    return ends - counts / 2 - ends[-1] / 2


def exposure(served: np.ndarray, rows: np.ndarray, parts: int = PARTS) -> np.ndarray:
    """How often a row of each part of the difficulties was served on average, float64 [parts].

    ``served`` and ``rows`` [levels] count servings and rows of levels in order of difficulty. A level that an edge
    of a part cuts counts on both sides in proportion.
    """
    bounds = np.concatenate([[0.0], np.cumsum(rows, dtype=np.float64)])
    edges = bounds[-1] * np.arange(parts + 1) / parts
    totals = np.concatenate([[0.0], np.cumsum(served, dtype=np.float64)])
    assert bounds[-1] > 0, "no rows"
    return np.diff(np.interp(edges, bounds, totals)) * parts / bounds[-1]

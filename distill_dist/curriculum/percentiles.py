"""Difficulty percentile of single rows under a snapshot: their rank over all rows, admitted or not (METHOD.md §4)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from distill_dist.curriculum.keys import Unscored, score_keys
from distill_dist.curriculum.levels import Levels

# Of many rows the rank is known to one in so many; of as few, or fewer, exactly.
RESOLUTION = 1000


def percentile_ranks(num_rows: int, threshold: float) -> list[int]:
    """The ranks to select: edges of RESOLUTION equal parts, and the one from which rows lie above ``threshold``."""
    parts = min(RESOLUTION, num_rows)
    edges = {index * num_rows // parts for index in range(1, parts)}
    gate = int(threshold * num_rows + 0.5)  # a row of rank r stands at r + ½
    return sorted(edges | ({gate} if 0 < gate < num_rows else set()))


@dataclass(frozen=True)
class Percentiles:
    """``levels`` selected at ``ranks`` of ``num_rows`` rows; ``confidence_at`` (rows -> float32) is the snapshot's."""

    levels: Levels
    ranks: tuple[int, ...]
    num_rows: int
    unscored: Unscored
    confidence_at: Callable[[np.ndarray], np.ndarray]

    def at(self, rows: np.ndarray) -> np.ndarray:
        """Percentiles float64 [n] of ``rows`` (int64 [n]): the middle of the part that holds the row, 1 is hardest.

        Above a threshold θ lie exactly the rows whose rank r (from 0, easiest first) has (r + ½) / N > θ.
        """
        confidence = self.confidence_at(rows)
        keys = score_keys(confidence, direction="easy_to_hard", unscored=self.unscored)
        level = self.levels.of(keys, rows)
        bounds = np.array([0, *self.ranks, self.num_rows])
        return (bounds[level] + bounds[level + 1]) / (2 * self.num_rows)

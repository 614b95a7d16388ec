"""A number of a whole split as a function of sums over its rows: of all of them, or under any weights of the rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]


@dataclass(frozen=True)
class Summed:
    """``of(sums)`` turns sums over rows [..., D] into values [...]; NaN where there is nothing to speak of.

    Sums add up over processes, and a resampled split is its columns under other weights: nothing else is asked of a
    metric to be exact on many ranks and to have an interval. Metrics may share the array of columns.
    """

    columns_ND: Floats
    of: Callable[[Floats], Floats]

    @property
    def value(self) -> float:
        """The number of the split as it is; NaN where no row counts."""
        return float(self.of(self.columns_ND.sum(axis=0, dtype=np.float64)))


def mean_of(values_N: Floats) -> Summed:
    """The mean over the rows that have a value; rows of NaN are left out."""
    has_N = ~np.isnan(values_N)
    columns_ND = np.stack([np.where(has_N, values_N, 0.0), has_N], axis=1).astype(np.float64)
    return Summed(columns_ND, _first_by_second)


def _first_by_second(sums_D: Floats) -> Floats:
    return ratio(sums_D[..., 0], sums_D[..., 1], empty=np.nan)


def ratio(above: Floats, below: Floats, *, empty: float) -> Floats:
    """``above`` / ``below``; ``empty`` where ``below`` is 0."""
    is_empty = below == 0
    found: Floats = np.where(is_empty, empty, above / np.where(is_empty, 1.0, below))
    return found

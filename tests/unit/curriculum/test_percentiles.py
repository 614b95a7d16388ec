"""Percentiles of rows against their ranks in numpy's sort."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest

from curriculum.test_selection import confidence, cut_blocks, sorted_rows
from distill_dist.curriculum.percentiles import RESOLUTION, Percentiles, percentile_ranks
from distill_dist.curriculum.selection import select

SEED = 11  # of test_selection's sort


def percentiles_of(values: np.ndarray, threshold: float, unscored: str = "hardest") -> Percentiles:
    ranks = percentile_ranks(len(values), threshold)
    blocks = cut_blocks(values, 700, unscored=unscored)
    levels = select(lambda: blocks, ranks, seed=SEED)
    return Percentiles(levels, tuple(ranks), len(values), unscored, lambda rows: values[rows])  # type: ignore[arg-type]


def ranks_of(values: np.ndarray, unscored: str) -> np.ndarray:
    ranks = np.empty(len(values), np.int64)
    ranks[sorted_rows(values, np.arange(len(values)), unscored=unscored)] = np.arange(len(values))
    return ranks


@pytest.mark.parametrize("unscored", ["hardest", "easiest"])
@pytest.mark.parametrize("kind", ["floats", "ties", "constant", "nans"])
@pytest.mark.parametrize("num_rows", [1, 2, 3, 10, 999, RESOLUTION])
def test_of_few_rows_exactly(kind: str, num_rows: int, unscored: str) -> None:
    values = confidence(kind, num_rows)
    for threshold in (0.0, 0.37, 0.5, 1.0):
        found = percentiles_of(values, threshold, unscored).at(np.arange(num_rows))
        assert np.allclose(found, (ranks_of(values, unscored) + 0.5) / num_rows, rtol=0, atol=1e-15)


@pytest.mark.parametrize("kind", ["floats", "ties", "nans"])
@pytest.mark.parametrize("num_rows", [1001, 1999, 20_003])
def test_of_many_rows_to_one_part(kind: str, num_rows: int) -> None:
    values = confidence(kind, num_rows)
    percentiles = percentiles_of(values, 0.1234)
    found = percentiles.at(np.arange(num_rows))
    ranks = ranks_of(values, "hardest")
    # the middle of a part is at most half a part from any of its rows; a part has N / 1000 rows, rounded up
    assert np.abs(found - (ranks + 0.5) / num_rows).max() <= (math.ceil(num_rows / RESOLUTION) / 2) / num_rows
    assert (np.diff(found[np.argsort(ranks)]) >= 0).all()
    assert abs(found.mean() - 0.5) < 1e-12, "a ramp over all rows has the mean of its ends"
    assert len(np.unique(found)) >= RESOLUTION
    some = np.random.default_rng(0).integers(0, num_rows, 30)
    assert np.array_equal(percentiles.at(some), found[some])
    assert percentiles.at(some[:0]).shape == (0,)


@pytest.mark.parametrize("num_rows", [1, 2, 3, 5, 10, 100, 999, 1000, 1001, 3333, 20_001])
def test_above_a_threshold_lie_exactly_the_rows_whose_place_does(num_rows: int) -> None:
    values = confidence("ties", num_rows)
    ranks = ranks_of(values, "hardest")
    for threshold in (0.0, 0.25, 0.3, 0.29, 1 / 3, 0.5, 0.5004, 0.66, 0.9, 0.9999, 1.0):
        above = percentiles_of(values, threshold).at(np.arange(num_rows)) > threshold
        # θ as it is written: a double is that to 2**-53, and no (r + ½) / N here comes nearer without being equal
        written = Fraction(threshold).limit_denominator(10_000)
        expected = [Fraction(2 * rank + 1, 2 * num_rows) > written for rank in ranks.tolist()]
        assert above.tolist() == expected, threshold
        assert abs((num_rows - int(above.sum())) - threshold * num_rows) <= 0.5 + 1e-9


def test_the_half_is_a_half() -> None:
    """`gate` at its default: as many rows rely on the teacher as do not; of an odd number one more does not."""
    for num_rows in (2, 100, 101, 5000, 5001):
        values = confidence("nans", num_rows)
        above = percentiles_of(values, 0.5).at(np.arange(num_rows)) > 0.5
        assert int(above.sum()) == num_rows // 2


def test_ranks_ascend_once_each() -> None:
    for num_rows in (1, 2, 999, 1000, 1001, 12_345, 10**9):
        for threshold in (0.0, 0.1, 0.5, 0.98765, 1.0):
            ranks = percentile_ranks(num_rows, threshold)
            assert ranks == sorted(set(ranks))
            assert all(0 < rank < num_rows for rank in ranks)
            assert len(ranks) <= RESOLUTION
            assert len(ranks) >= min(RESOLUTION, num_rows) - 1

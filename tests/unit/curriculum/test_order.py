"""The seeded order: a bijection for every N, integers only, well mixed, fast enough to recompute."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest

from distill_dist.curriculum.order import CHUNK, RandomOrder, permute_each, rows_at


def whole(num_rows: int, *, seed: int = 0, epoch: int = 0) -> np.ndarray:
    return rows_at(np.arange(num_rows), num_rows, seed=seed, epoch=epoch)


def assert_uniform(counts: np.ndarray, expected: np.ndarray | float, degrees: int) -> None:
    """Pearson's statistic has mean ``degrees`` and deviation √(2·degrees); 6 deviations and a skew margin.

    The seeds are fixed, so this never flickers; 6 deviations leave room for another choice of seeds.
    """
    statistic = float(((counts - expected) ** 2 / expected).sum())
    assert statistic < degrees + 6 * math.sqrt(2 * degrees) + 12, (statistic, degrees)
    assert statistic > degrees - 6 * math.sqrt(2 * degrees) - 12, "more even than chance"


@pytest.mark.parametrize("seed", [0, 1, -5, 2**70 + 3])
def test_bijection_for_every_small_number_of_rows(seed: int) -> None:
    for num_rows in range(1, 301):
        assert np.array_equal(np.sort(whole(num_rows, seed=seed, epoch=seed % 3)), np.arange(num_rows))


@pytest.mark.parametrize("num_rows", [CHUNK, CHUNK + 1, 67_349, 65_536, 65_537, 392_702])
def test_bijection_for_large_numbers(num_rows: int) -> None:
    rows = whole(num_rows, seed=7, epoch=3)
    assert not np.array_equal(rows, np.arange(num_rows))
    assert np.array_equal(np.sort(rows), np.arange(num_rows))


@pytest.mark.parametrize("num_rows", [2**32, 2**40 + 1, 2**62])
def test_huge_domains_stay_inside_and_distinct(num_rows: int) -> None:
    positions = np.concatenate([np.arange(5000), num_rows - 1 - np.arange(5000)])
    rows = rows_at(positions, num_rows, seed=1, epoch=1)
    assert len(np.unique(rows)) == len(rows)
    assert rows.min() >= 0
    assert rows.max() < num_rows


def test_random_access_equals_the_whole() -> None:
    rows = whole(1000, seed=4, epoch=2)
    positions = np.array([[999, 0, 17], [17, 500, 3]], dtype=np.uint16)
    picked = rows_at(positions, 1000, seed=4, epoch=2)
    assert picked.dtype == np.int64
    assert np.array_equal(picked, rows[positions])
    assert rows_at(np.empty(0, dtype=np.int64), 1000, seed=4, epoch=2).shape == (0,)
    order = RandomOrder(num_rows=1000, seed=4)
    assert np.array_equal(order.rows_at(2, np.arange(1000)), rows)


def test_out_of_range_is_refused() -> None:
    for position in (-1, 10):
        with pytest.raises(AssertionError, match="out of range"):
            rows_at(np.array([position]), 10, seed=0, epoch=0)


def test_values_never_change() -> None:
    """A checkpoint of an older version must go on with the same rows: change these and you break resuming."""
    assert whole(10, seed=0, epoch=0).tolist() == [7, 4, 9, 6, 3, 2, 5, 0, 8, 1]
    assert rows_at(np.array([0, 1, 67_348]), 67_349, seed=42, epoch=3).tolist() == [53923, 9442, 6741]


def test_seeds_and_epochs_give_different_orders() -> None:
    first = whole(5000, seed=0, epoch=0)
    others = [whole(5000, seed=0, epoch=1), whole(5000, seed=1, epoch=0), whole(5000, seed=1, epoch=1)]
    for index, left in enumerate([first, *others]):
        for right in [first, *others][index + 1 :]:
            # Two unrelated permutations agree at 1 ± 1 places
            assert (left == right).sum() < 9


@pytest.mark.parametrize("num_rows", [7, 10, 37, 100])
def test_rows_and_differences_of_neighbours_are_uniform_over_seeds(num_rows: int) -> None:
    seeds = 2000
    placed = np.zeros((num_rows, num_rows))
    differences = np.zeros(num_rows)
    for seed in range(seeds):
        rows = whole(num_rows, seed=seed)
        placed[np.arange(num_rows), rows] += 1
        np.add.at(differences, (rows[1:] - rows[:-1]) % num_rows, 1)
    assert_uniform(placed, seeds / num_rows, (num_rows - 1) ** 2)
    assert differences[0] == 0
    assert_uniform(differences[1:], seeds, num_rows - 2)


def test_one_epoch_of_a_real_size_is_mixed() -> None:
    """Position band × row band, and the row bands of neighbours, in 32 × 32 cells."""
    num_rows, bands = 67_349, 32
    for epoch in range(4):
        rows = whole(num_rows, seed=11, epoch=epoch)
        band = rows * bands // num_rows
        at = np.arange(num_rows) * bands // num_rows
        cell = np.bincount(at * bands + band, minlength=bands**2)
        assert_uniform(cell, num_rows / bands**2, (bands - 1) ** 2)
        pairs = np.bincount(band[:-1] * bands + band[1:], minlength=bands**2)
        assert_uniform(pairs, (num_rows - 1) / bands**2, bands**2 - bands)


def test_a_million_rows_take_less_than_a_second_of_one_core() -> None:
    positions = np.arange(1_000_000)
    started = time.process_time()
    rows_at(positions, 2**33, seed=0, epoch=0)
    assert time.process_time() - started < 1.0  # about 0.1 s measured


def whole_classes(sizes: list[int], passes: int = 0, **keys: int) -> list[np.ndarray]:
    """Every class's values [0, size) moved; asked for together, shuffled."""
    classes = np.repeat(np.arange(len(sizes)), sizes)
    values = np.concatenate([np.arange(size) for size in sizes])
    shuffled = np.random.default_rng(0).permutation(len(values))
    moved = np.empty(len(values), np.int64)
    moved[shuffled] = permute_each(
        values[shuffled],
        classes[shuffled],
        np.array(sizes),
        np.full(len(values), passes),
        **{"seed": 3, "epoch": 1} | keys,
    )
    return np.split(moved, np.cumsum(sizes)[:-1])


@pytest.mark.parametrize("passes", [0, 1, 2**40])
def test_each_class_is_permuted_within_itself(passes: int) -> None:
    sizes = [*range(1, 120), 0, 65_536, 65_537, CHUNK, 99_991]
    for size, moved in zip(sizes, whole_classes(sizes, passes), strict=True):
        assert np.array_equal(np.sort(moved), np.arange(size))
    assert not np.array_equal(moved, np.arange(size))


def test_huge_classes_stay_inside_and_distinct() -> None:
    for size in (2**32 + 1, 2**52 - 1):
        values = np.concatenate([np.arange(3000), size - 1 - np.arange(3000)])
        zeros = np.zeros(6000, np.int64)
        moved = permute_each(values, zeros, np.array([size]), zeros, seed=1, epoch=0)
        assert len(np.unique(moved)) == len(moved)
        assert moved.min() >= 0
        assert moved.max() < size
        assert np.abs(moved - values).min() > 0, "six thousand of 2**32 stay where they are with 1e-6"


def test_classes_passes_epochs_and_seeds_are_permuted_apart() -> None:
    """(class, pass) and (class + 1, pass - 1) included: keys that were a sum would make them one."""
    size = 3000
    orders = [
        whole_classes([size] * 4, passes, **keys)[of]
        for of in range(4)
        for passes in range(4)
        for keys in ({}, {"seed": 4}, {"epoch": 2})
    ]
    for index, left in enumerate(orders):
        for right in orders[:index]:
            # Two unrelated permutations agree at 1 ± 1 places
            assert (left == right).sum() < 12


def test_moved_one_by_one_equals_moved_together_and_never_changes() -> None:
    sizes = np.array([5, 700, 1, 40_000])
    classes = np.array([3, 1, 0, 3, 2, 1])
    values = np.array([39_999, 5, 2, 0, 0, 699])
    passes = np.array([2, 0, 1, 2, 9, 3])
    together = permute_each(values, classes, sizes, passes, seed=7, epoch=4)
    for place in range(len(values)):
        one = slice(place, place + 1)
        alone = permute_each(values[one], classes[one], sizes, passes[one], seed=7, epoch=4)
        assert alone.tolist() == [together[place]]
    # A resumed run must go on with the same rows: change these and you break resuming.
    assert together.tolist() == [20095, 152, 1, 16892, 0, 88]
    nothing = permute_each(values[:0], classes[:0], sizes, passes[:0], seed=7, epoch=4)
    assert (nothing.shape, nothing.dtype) == ((0,), np.int64)


@pytest.mark.parametrize("num_rows", [7, 37])
def test_passes_and_classes_are_uniform(num_rows: int) -> None:
    """Each value at each place equally often, over passes and over neighbouring classes."""
    draws = 3000
    values = np.tile(np.arange(num_rows), draws)
    numbers = np.repeat(np.arange(draws), num_rows)
    zeros = np.zeros(len(values), np.int64)
    over_passes = permute_each(values, zeros, np.array([num_rows]), numbers, seed=0, epoch=0)
    over_classes = permute_each(values, numbers, np.full(draws, num_rows), zeros, seed=0, epoch=0)
    for moved in (over_passes, over_classes):
        placed = np.bincount(values * num_rows + moved, minlength=num_rows**2)
        assert_uniform(placed, draws / num_rows, (num_rows - 1) ** 2)
        table = moved.reshape(draws, num_rows)
        differences = np.bincount(((table[1:] - table[:-1]) % num_rows).reshape(-1), minlength=num_rows)
        assert_uniform(differences, draws - 1, num_rows)

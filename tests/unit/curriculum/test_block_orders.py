"""Rows of a block in class order, the same ones however few blocks fit into memory."""

from __future__ import annotations

import numpy as np
import pytest

from distill_dist.curriculum.block_orders import BlockOrders


class Blocks:
    """Random classes of each block, and how often each was asked for."""

    def __init__(self, sizes: list[int], num_classes: int) -> None:
        rng = np.random.default_rng(0)
        self.sizes = np.array(sizes)
        self.classes = [rng.integers(0, num_classes, size) for size in sizes]
        self.orders = [np.array(sorted(range(len(of)), key=of.__getitem__)) for of in self.classes]
        self.asked: list[int] = []

    def classes_of(self, block: int) -> np.ndarray:
        self.asked.append(block)
        return self.classes[block]


def blocks() -> Blocks:
    return Blocks([50, 1, 64, 30, 64, 7, 12, 64, 2, 33], num_classes=5)


@pytest.mark.parametrize("slots", [0, 1, 2, 3, 9, 10, 50])
def test_places_are_those_of_a_stable_sort_whatever_fits(slots: int) -> None:
    given, rng = blocks(), np.random.default_rng(1)
    orders = BlockOrders(given.sizes, given.classes_of, memory_bytes=slots * 64 * 2)
    for size in [1, 2, 3, 100, 5, 1000, 0]:
        chosen = rng.integers(0, len(given.sizes), size)
        ranks = (rng.random(size) * given.sizes[chosen]).astype(np.int64)
        expected = [given.orders[block][rank] for block, rank in zip(chosen, ranks, strict=True)]
        found = orders.places(chosen, ranks)
        assert found.dtype == np.int64
        assert found.tolist() == expected
    if slots >= 10:
        assert sorted(given.asked) == list(range(10)), "each once"
    else:
        assert len(given.asked) > 10


def test_only_touched_blocks_are_asked_for_and_kept_while_they_fit() -> None:
    given = blocks()
    orders = BlockOrders(given.sizes, given.classes_of, memory_bytes=3 * 64 * 2)
    for chosen in ([4], [4, 7], [7, 4, 9], [9, 4]):
        orders.places(np.array(chosen), np.zeros(len(chosen), int))
    assert given.asked == [4, 7, 9]
    orders.places(np.array([9, 2]), np.array([3, 3]))  # 4 came first and leaves; 9 is needed and stays
    orders.places(np.array([7, 2, 9]), np.array([3, 3, 3]))
    assert given.asked == [4, 7, 9, 2]
    orders.places(np.array([4]), np.array([0]))
    assert given.asked == [4, 7, 9, 2, 4]


def test_what_is_needed_now_does_not_leave_for_what_is_needed_as_well() -> None:
    given = blocks()
    orders = BlockOrders(given.sizes, given.classes_of, memory_bytes=3 * 64 * 2)
    orders.places(np.array([0, 1, 2]), np.zeros(3, int))
    for chosen in ([0, 3, 4], [4, 5, 0], [0, 6, 5], [7, 8, 0]):
        ranks = given.sizes[chosen] - 1
        expected = [given.orders[block][rank] for block, rank in zip(chosen, ranks, strict=True)]
        assert orders.places(np.array(chosen), ranks).tolist() == expected
    assert given.asked.count(0) == 1


@pytest.mark.parametrize("size", [1 << 16, (1 << 16) + 1])
def test_blocks_of_more_rows_than_16_bits_count(size: int) -> None:
    given = Blocks([size, 3], num_classes=200)
    orders = BlockOrders(given.sizes, given.classes_of, memory_bytes=1 << 20)
    ranks = np.arange(size)
    found = orders.places(np.zeros(size, int), ranks)
    assert np.array_equal(found, given.orders[0])
    assert np.array_equal(np.sort(found), ranks)


def test_the_largest_class_numbers() -> None:
    classes = np.array([65_535, 0, 256, 65_280, 255, 65_535, 1])
    orders = BlockOrders(np.array([7]), lambda _: classes, memory_bytes=0)
    assert orders.places(np.zeros(7, int), np.arange(7)).tolist() == [1, 6, 4, 2, 3, 0, 5]

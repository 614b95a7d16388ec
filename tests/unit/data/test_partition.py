"""A global batch over ranks and micro-batches, for all (rank, size) without processes."""

from __future__ import annotations

import itertools
import time

import numpy as np
import pytest

from distill_dist.data.partition import partition
from distill_dist.errors import UserError


def lengths_of(kind: str, count: int) -> np.ndarray:
    random = np.random.default_rng(count)
    lengths = {
        "uniform": random.integers(3, 129, size=count),
        "equal": np.full(count, 128),
        "short": np.minimum(3 + random.geometric(0.1, size=count), 128),
        "one_long": np.r_[128, np.full(count - 1, 3)],
        "rising": np.linspace(3, 128, count).astype(int),
    }[kind]
    return lengths.astype(np.uint16)


def cost(lengths: np.ndarray, group: np.ndarray) -> int:
    return len(group) * int(lengths[group].max()) if len(group) else 0


def fewest_groups(lengths: np.ndarray, budget: int) -> int:
    """Reference, by dynamic programming over contiguous groups of the sorted rows."""
    ordered = sorted(map(int, lengths))
    best = [0] + [len(ordered)] * len(ordered)
    for end in range(1, len(ordered) + 1):
        for start in range(end):
            if (end - start) * ordered[end - 1] <= budget:
                best[end] = min(best[end], best[start] + 1)
    return best[-1]


def smallest_maximum(lengths: np.ndarray, groups: int) -> int:
    """Reference: the least possible cost of the costliest of at most ``groups`` contiguous groups."""
    ordered = sorted(map(int, lengths))
    total = len(ordered)
    best = [[0] + [10**9] * total] + [[0] * (total + 1) for _ in range(groups)]
    for used in range(1, groups + 1):
        for end in range(1, total + 1):
            best[used][end] = min(
                max(best[used - 1][start], (end - start) * ordered[end - 1]) for start in range(end)
            )
    return min(row[total] for row in best)


@pytest.mark.parametrize("kind", ["uniform", "equal", "short", "one_long", "rising"])
@pytest.mark.parametrize("budget", [128, 300, 1024, 4096])
def test_every_row_once_within_budget_and_equal_numbers(kind: str, budget: int) -> None:
    for size, count in itertools.product(range(1, 10), range(1, 71)):
        lengths = lengths_of(kind, count)
        ranks = partition(lengths, size=size, budget=budget)
        assert len(ranks) == size
        assert len({len(micros) for micros in ranks}) == 1
        groups = [group for micros in ranks for group in micros]
        assert all(group.dtype == np.int64 for group in groups)
        assert sorted(np.concatenate(groups).tolist()) == list(range(count))
        assert max(cost(lengths, group) for group in groups) <= budget
        assert sum(len(group) > 0 for group in groups) == min(count, len(groups))
        ordered = sorted(
            (int(lengths[group].min()), int(lengths[group].max())) for group in groups if len(group)
        )
        assert all(left[1] <= right[0] for left, right in itertools.pairwise(ordered))


@pytest.mark.parametrize("kind", ["uniform", "equal", "short", "one_long", "rising"])
def test_fewest_micro_batches_and_best_balance(kind: str) -> None:
    for size, count, budget in itertools.product((1, 2, 3, 5), (1, 2, 7, 16, 23), (128, 400, 1000)):
        lengths = lengths_of(kind, count)
        ranks = partition(lengths, size=size, budget=budget)
        micro_batches = len(ranks[0])
        assert micro_batches == -(-fewest_groups(lengths, budget) // size)
        costliest = max(cost(lengths, group) for micros in ranks for group in micros)
        assert costliest == smallest_maximum(lengths, size * micro_batches)


def test_no_grouping_at_all_needs_fewer_groups() -> None:
    """Contiguous groups are enough: brute force over every assignment of 5 rows."""
    for seed in range(10):
        lengths = np.random.default_rng(seed).integers(1, 20, size=5)
        budget = int(lengths.max()) + seed
        fewest = min(
            len(set(assignment))
            for assignment in itertools.product(range(5), repeat=5)
            if fits(lengths, assignment, budget)
        )
        assert len(partition(lengths, size=1, budget=budget)[0]) == fewest


def fits(lengths: np.ndarray, assignment: tuple[int, ...], budget: int) -> bool:
    groups = np.array(assignment)
    return all(cost(lengths, np.flatnonzero(groups == group)) <= budget for group in set(assignment))


def test_like_costs_share_an_index() -> None:
    """Ranks wait for each other at an index: sorted dealing gives these groups the least sum of maxima."""
    for size, count in itertools.product(range(2, 10), range(20, 71, 6)):
        lengths = lengths_of("uniform", count)
        ranks = partition(lengths, size=size, budget=128)
        costs = np.array([[cost(lengths, group) for group in micros] for micros in ranks])
        assert costs.shape[1] > 1
        assert (costs.min(axis=0)[:-1] >= costs.max(axis=0)[1:]).all()


def test_the_costlier_rank_alternates() -> None:
    """Otherwise rank 0 would be the slowest at every index, and the others would wait for it."""
    lengths = lengths_of("uniform", 64)
    ranks = partition(lengths, size=2, budget=200)
    differences = [cost(lengths, first) - cost(lengths, second) for first, second in zip(*ranks, strict=True)]
    assert len(differences) >= 4
    assert all(difference >= 0 for difference in differences[::2])
    assert all(difference <= 0 for difference in differences[1::2])
    assert min(differences) < 0 < max(differences)


def test_fewer_rows_than_ranks() -> None:
    ranks = partition(np.array([5, 9]), size=4, budget=128)
    assert sorted(len(micros[0]) for micros in ranks) == [0, 0, 1, 1]


def test_a_row_longer_than_the_budget_names_the_remedy() -> None:
    with pytest.raises(UserError, match=r"micro_tokens is 100.*129 tokens.*at least 129"):
        partition(np.array([5, 129]), size=2, budget=100)


@pytest.mark.parametrize("kind", ["short", "equal"])
def test_about_a_millisecond_per_step(kind: str) -> None:
    lengths = lengths_of(kind, 256)
    started = time.process_time()
    for _ in range(50):
        partition(lengths, size=4, budget=512)
    assert (time.process_time() - started) / 50 < 1e-3  # 0.05 ms measured

"""Global batches of an epoch: every row once, little padding, no trend, random access."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest

from distill_dist.data.windows import EpochPlan, num_steps, window_batches

RowsAt = Callable[[int, np.ndarray], np.ndarray]


def shuffled(num_rows: int) -> RowsAt:
    """Stands for the plan's order: one fixed permutation per epoch."""

    def rows_at(epoch: int, positions: np.ndarray) -> np.ndarray:
        return np.random.default_rng([num_rows, epoch]).permutation(num_rows)[positions]

    return rows_at


def lengths_of(num_rows: int) -> np.ndarray:
    return np.random.default_rng(num_rows).integers(3, 65, size=num_rows).astype(np.uint16)


def plan(
    num_rows: int, *, batch_size: int = 8, window: int = 4, seed: int = 0, epoch: int = 0, **changed: object
) -> EpochPlan:
    arguments: dict = {"lengths": lengths_of(num_rows), "rows_at": shuffled(num_rows), **changed}
    return EpochPlan(
        num_rows=num_rows, batch_size=batch_size, window=window, seed=seed, epoch=epoch, **arguments
    )


def batches_of(epoch_plan: EpochPlan) -> list[np.ndarray]:
    steps = num_steps(epoch_plan.num_rows, epoch_plan.batch_size)
    return [epoch_plan.global_batch(step) for step in range(steps)]


@pytest.mark.parametrize("window", [1, 2, 5, 64])
def test_every_row_once_and_one_smaller_batch(window: int) -> None:
    for num_rows in range(1, 70):
        for batch_size in (1, 3, 8, 70):
            batches = batches_of(plan(num_rows, batch_size=batch_size, window=window))
            assert np.array_equal(np.sort(np.concatenate(batches)), np.arange(num_rows))
            sizes = sorted(len(batch) for batch in batches)
            remainder = num_rows - batch_size * (len(batches) - 1)
            assert sizes == [remainder] + [batch_size] * (len(batches) - 1)


def test_window_one_keeps_the_plan_order() -> None:
    rows = shuffled(50)(2, np.arange(50))
    batches = batches_of(plan(50, window=1, epoch=2))
    assert [batch.tolist() for batch in batches] == [rows[i : i + 8].tolist() for i in range(0, 50, 8)]
    grouped = batches_of(plan(50, window=4, epoch=2))
    assert [set(batch) for batch in grouped] != [set(batch) for batch in batches]


def test_a_window_holds_the_rows_of_the_plan() -> None:
    rows = shuffled(200)(0, np.arange(200))
    batches = batches_of(plan(200, window=5))
    for start in range(0, len(batches), 5):
        window = np.concatenate(batches[start : start + 5])
        assert set(window) == set(rows[start * 8 : start * 8 + 40])


def test_batches_of_a_window_do_not_overlap_in_length() -> None:
    epoch_plan = plan(320, window=10)
    for start in range(0, 40, 10):
        batches = [epoch_plan.lengths[epoch_plan.global_batch(start + step)] for step in range(10)]
        ordered = sorted((int(batch.min()), int(batch.max())) for batch in batches)
        for (_, longest), (shortest, _) in itertools.pairwise(ordered):
            assert longest <= shortest


def test_any_step_first_gives_the_same_batch() -> None:
    expected = batches_of(plan(333))
    once = plan(333)
    for step in np.random.default_rng(0).permutation(len(expected)):
        assert np.array_equal(once.global_batch(int(step)), expected[step])
        assert np.array_equal(plan(333).global_batch(int(step)), expected[step])


def test_steps_outside_the_epoch_are_refused() -> None:
    for step in (-1, 5):
        with pytest.raises(AssertionError):
            plan(40).global_batch(step)


def test_seed_and_epoch_change_the_batches() -> None:
    same_order: RowsAt = lambda epoch, positions: shuffled(400)(0, positions)  # noqa: E731
    lists = [
        [batch.tolist() for batch in batches_of(plan(400, rows_at=same_order, seed=seed, epoch=epoch))]
        for seed, epoch in ((0, 0), (1, 0), (0, 1), (2**64 - 1, 0))
    ]
    assert all(left != right for index, left in enumerate(lists) for right in lists[index + 1 :])


def test_equal_lengths_are_mixed_by_seed() -> None:
    """With one length only, grouping must neither keep the plan's order nor the rows'."""
    for rows in (np.arange(400), np.random.default_rng(1).permutation(400)):
        batches = window_batches(rows, np.full(400, 9), batch_size=40, seed=0, epoch=0, index=0)
        together = [len({int(np.flatnonzero(rows == row)[0]) // 40 for row in batch}) for batch in batches]
        # 40 draws from 10 blocks of the plan: all 10 in nearly every batch, 1 if the order were kept
        assert min(together) >= 7


def test_no_trend_of_lengths_inside_a_window() -> None:
    """The mean length at a step of the window, over many windows, is flat.

    A batch's mean is about uniform over the sorted window (deviation ≤ 18 for lengths 3 … 64), so its mean
    over 300 windows deviates by ≤ 1.04; the bound is 5 of these. Sorted batches would differ by 55.
    """
    windows, size = 300, 8 * 6
    lengths = np.random.default_rng(0).integers(3, 65, size=windows * size)
    means = np.array(
        [
            [
                lengths[batch].mean()
                for batch in window_batches(
                    np.arange(index * size, (index + 1) * size),
                    lengths[index * size : (index + 1) * size],
                    batch_size=8,
                    seed=0,
                    epoch=0,
                    index=index,
                )
            ]
            for index in range(windows)
        ]
    )
    assert means.std(axis=1).mean() > 10  # the windows are grouped at all
    assert np.abs(means.mean(axis=0) - means.mean()).max() < 5 * 18 / np.sqrt(windows)


def test_the_smaller_batch_holds_any_length() -> None:
    """Its rows weigh more in their step's mean: they must not always be the window's longest."""
    lengths = np.arange(3, 36)
    found = set()
    for epoch in range(60):
        batches = window_batches(np.arange(33), lengths, batch_size=8, seed=0, epoch=epoch, index=0)
        found |= {int(batch[0]) for batch in batches if len(batch) == 1}
    assert found == {0, 8, 16, 24, 32}  # five places: each is missed with probability 0.8**60 = 2e-6


def test_values_never_change() -> None:
    """A resumed run must go on with the same batches: change these and you break resuming."""
    batches = window_batches(np.arange(12), np.array([5, 9] * 6), batch_size=4, seed=42, epoch=1, index=2)
    assert [batch.tolist() for batch in batches] == [[8, 4, 2, 6], [10, 0, 5, 3], [11, 9, 7, 1]]

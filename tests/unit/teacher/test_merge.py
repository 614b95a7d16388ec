"""Which rows are computed together."""

from __future__ import annotations

import pytest

from distill_dist.teacher.merge import micro_batches


@pytest.mark.parametrize("budget", [1, 7, 24, 1000])
def test_every_row_once_within_the_budget_and_sorted(budget: int) -> None:
    lengths = [3, 12, 5, 12, 1, 9, 3, 3, 7]
    found = micro_batches(lengths, budget=budget)
    assert sorted(row for batch in found for row in batch) == list(range(9))
    flat = [lengths[row] for batch in found for row in batch]
    assert flat == sorted(lengths, reverse=True)
    for batch in found:
        assert len(batch) * lengths[batch[0]] <= budget or len(batch) == 1
    greedy = [len(batch) for batch in found[:-1]]
    assert all((count + 1) * lengths[batch[0]] > budget for count, batch in zip(greedy, found, strict=False))


def test_nothing_asked_nothing_computed() -> None:
    assert micro_batches([], budget=10) == []

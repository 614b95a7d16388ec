"""What a step says of each row: λ, its place in the global batch, and whether it is one of the hardest."""

from __future__ import annotations

import numpy as np
import pytest

from data.test_loader import aligned_ids, loader, real_ids, split_of


def reliance_by_row(rows: np.ndarray) -> np.ndarray:
    return (rows / 64).astype(np.float32)  # exact in float32


@pytest.mark.parametrize("size", [1, 2, 7])
@pytest.mark.parametrize("aligned_share", [1.0, 0.5])
def test_reliance_and_place_travel_with_every_row(size: int, aligned_share: float) -> None:
    """Asked for once a step, for the whole global batch; each rank's batches hold its rows' own."""
    split, asked = split_of(37), []

    def reliance_of(rows: np.ndarray) -> np.ndarray:
        asked.append(rows)
        return reliance_by_row(rows)

    ranks = [
        list(
            loader(split, rank=rank, size=size, aligned_share=aligned_share, reliance_of=reliance_of).steps(
                epochs=1
            )
        )
        for rank in range(size)
    ]
    plan = loader(split)._plan(0)
    assert len(asked) == size * len(ranks[0])
    fillers = 0
    for steps in zip(*ranks, strict=True):
        expected = plan.global_batch(steps[0].index)
        found: dict[int, int] = {}
        for batch in (batch for step in steps for batch in step.batches):
            assert batch.positions_B is not None
            assert batch.reliance_B is not None
            assert np.array_equal(batch.reliance_B.numpy(), reliance_by_row(batch.ids_B.numpy()))
            if not batch.is_real_B.all():
                fillers += 1
                assert not batch.is_real_B.any()
                assert batch.positions_B.tolist() == [0], "a place that is always there"
                continue
            for place, row in zip(batch.positions_B.tolist(), batch.ids_B.tolist(), strict=True):
                assert place not in found
                found[place] = row
        assert [found[place] for place in range(len(expected))] == expected.tolist()
    assert (fillers > 0) == (size == 7)  # the last global batch has five rows


def test_no_reliance_is_none_and_one_that_is_not_known_yet_as_well() -> None:
    for reliance_of in (None, lambda rows: None):
        step = next(loader(split_of(20), reliance_of=reliance_of).steps(epochs=1))
        assert all(batch.reliance_B is None for batch in step.batches)


@pytest.mark.parametrize("size", [1, 3])
def test_the_rows_of_lowest_confidence_are_aligned(size: int) -> None:
    """NaN counts as the hardest; the weight is the draw's."""
    split = split_of(50)
    confidence = np.random.default_rng(0).random(50).astype(np.float32)
    confidence[[3, 30]] = np.nan
    difficulty = np.where(np.isnan(confidence), np.inf, -confidence)
    ranks = [
        list(
            loader(
                split, rank=rank, size=size, aligned_share=0.25, confidence_of=lambda rows: confidence[rows]
            ).steps(epochs=2)
        )
        for rank in range(size)
    ]
    drawn = list(loader(split, aligned_share=0.25).steps(epochs=2))
    differ = 0
    for draw, *steps in zip(drawn, *ranks, strict=True):
        rows = sorted(row for step in steps for row in real_ids(step))
        assert rows == sorted(real_ids(draw))
        count = max(1, round(0.25 * len(rows)))
        hardest = sorted(rows, key=lambda row: difficulty[row], reverse=True)[:count]
        aligned = sorted(row for step in steps for row in aligned_ids(step))
        assert aligned == sorted(hardest)
        differ += aligned != sorted(aligned_ids(draw))
        weights = {batch.alignment for step in steps for batch in step.batches if batch.alignment}
        assert weights == {len(rows) / count}
    assert differ > len(drawn) / 2


def test_ties_of_confidence_and_unknown_ones_are_drawn_by_the_seed() -> None:
    split = split_of(50)
    drawn, tied, unknown, lost = (
        [aligned_ids(step) for step in loader(split, aligned_share=0.25, confidence_of=of).steps(epochs=2)]
        for of in (
            None,
            lambda rows: np.ones(len(rows), np.float32),
            lambda rows: None,
            lambda rows: np.full(len(rows), np.nan, np.float32),
        )
    )
    assert drawn == tied == unknown == lost

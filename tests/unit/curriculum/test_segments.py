"""Draws per class and places per position: nothing lost, nothing twice, every batch with the pool's own mix."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import pytest

from distill_dist.curriculum.segments import (
    Draws,
    Segment,
    Strata,
    cut_segments,
    draws_per_class,
    positions_by_segment,
)

BATCHES = [1, 2, 3, 7, 32, 48, 256]
# A batch that is cut consists of at most four runs of evenly stepped slots (the end of a round, the rest, the end
# of another rest or round, the beginning of the next pass). Among n ≤ 1000 golden multiples, less than 1 + log2(n) / 4
# too many or too few lie below any bound; the four of them measured here are never more than 3.3 off.
CUT_BATCH = 4.0


def split_evenly(total: int, classes: int) -> np.ndarray:
    return np.diff(np.arange(classes + 1) * total // classes)


def classes_served(segments: Sequence[Segment], strata: Strata, positions: int) -> np.ndarray:
    """Class of each position, straight from the definition of a segment."""
    found: list[np.ndarray] = []
    for segment in segments:
        assert segment.start == sum(len(part) for part in found)
        places = strata.places(np.arange(segment.length), segment.length)
        of = np.searchsorted(segment.bounds, places, side="right") - 1
        found.append(np.tile(of, segment.repeats))
    served = np.concatenate(found)
    assert len(served) == positions
    return served


def drawn(rows: np.ndarray, draws: list[Draws], *, once_per_pass: bool = True) -> list[Segment]:
    return cut_segments(rows, draws, once_per_pass=once_per_pass, seed=3, epoch=1)


@pytest.mark.parametrize("batch_size", BATCHES)
def test_places_are_a_bijection_and_each_round_takes_every_stratum(batch_size: int) -> None:
    strata = Strata(batch_size, seed=5)
    for length in [*range(1, 70), batch_size, 5 * batch_size, 5 * batch_size + 1, 40 * batch_size - 1]:
        places = strata.places(np.arange(length), length)
        assert np.array_equal(np.sort(places), np.arange(length))
        again = np.random.default_rng(0).permutation(length)
        assert np.array_equal(strata.places(again, length), places[again])
        whole = places[: length // batch_size * batch_size]
        edges = np.arange(1, batch_size) * length // batch_size
        stratum = np.searchsorted(edges, whole, side="right")
        for start in range(len(whole) - batch_size + 1):  # any run of a batch's length, wherever it begins
            if start % 7 == 0 or batch_size < 8:
                assert len(set(stratum[start : start + batch_size].tolist())) == batch_size


@pytest.mark.parametrize("batch_size", BATCHES)
@pytest.mark.parametrize("classes", [1, 5, 10, 64, 70])
def test_batches_inside_a_pass_take_floor_or_ceil_below_any_difficulty(batch_size: int, classes: int) -> None:
    strata = Strata(batch_size, seed=1)
    for total in (64, 40 * batch_size, 40 * batch_size + 5, 5000, 5003):
        rows = split_evenly(total, classes)
        (segment,) = drawn(rows, [Draws(total, classes)])
        served = classes_served([segment], strata, total)
        counts = counts_of_batches(served, batch_size, classes)
        shares = rows * batch_size / total
        # The pool's bounds cut strata, and strata are whole rows: 1e-9 is for the doubles, and rows of a stratum
        # that is one longer than others move a share by less than one part in so many rounds.
        error = np.abs(np.cumsum(counts, axis=1) - np.cumsum(shares))
        assert error.max(initial=0) < 1 + batch_size / total + 1e-9
        # a class lies between two such bounds
        assert np.abs(counts - shares).max(initial=0) < 2 + 2 * batch_size / total + 1e-9
        if total % batch_size == 0 and batch_size % classes == 0:
            assert (counts == batch_size // classes).all()
        if total % batch_size == 0 and classes % batch_size == 0 and total % classes == 0:
            assert set(np.unique(counts)) <= {0, 1}


def counts_of_batches(served: np.ndarray, batch_size: int, classes: int) -> np.ndarray:
    """Rows of each class in each whole batch [batches, classes]."""
    whole = served[: len(served) // batch_size * batch_size].reshape(-1, batch_size)
    cells = np.arange(len(whole))[:, None] * classes + whole
    return np.bincount(cells.reshape(-1), minlength=len(whole) * classes).reshape(len(whole), classes)


@pytest.mark.parametrize("batch_size", [7, 32, 64, 256, 1000])
def test_a_batch_that_a_passes_end_cuts_is_bounded_too(batch_size: int) -> None:
    strata, worst = Strata(batch_size, seed=1), 0.0
    for share in (0.51, 0.77, 0.99, 1.01, 1.3, 1.5, 1.77, 2.7, 5.49, 9.9):
        total = int(batch_size * share) + 1
        classes, positions = min(64, total), 60 * batch_size
        rows = split_evenly(total, classes)
        segments = drawn(rows, [Draws(positions, classes)])
        counts = counts_of_batches(classes_served(segments, strata, positions), batch_size, classes)
        error = np.abs(np.cumsum(counts, axis=1) - np.cumsum(rows) * batch_size / total).max()
        worst = max(worst, float(error))
    assert 0 < worst < CUT_BATCH


def test_a_pool_smaller_than_a_batch_is_not_served_in_order_of_difficulty() -> None:
    """Each half of 100 rows, 64 at a time."""
    strata = Strata(64, seed=1)
    easier = strata.places(np.arange(100), 100) < 50
    assert abs(int(easier[:64].sum()) - 32) <= 2
    easier = Strata(256, seed=1).places(np.arange(100), 100) < 50
    for start in range(0, 100, 20):
        assert abs(int(easier[start : start + 20].sum()) - 10) <= 2


def brute_passes(rows: np.ndarray, draws: list[Draws], served: np.ndarray) -> int:
    """Walks through ``served`` and holds it to the promise; the number of passes begun."""
    count, passes, position = np.zeros(len(rows), np.int64), 1, 0
    for stage in draws:
        pool = np.where(np.arange(len(rows)) < stage.classes, rows, 0)
        for kind in served[position : position + stage.positions].tolist():
            assert pool[kind] > 0, "not admitted"
            if (count == pool).all():
                count[:] = 0
                passes += 1
            count[kind] += 1
            assert count[kind] <= pool[kind], "a row twice before every admitted row once"
        position += stage.positions
    return passes


@pytest.mark.parametrize("batch_size", [1, 7, 32])
def test_no_row_comes_twice_before_every_admitted_row_came_once(batch_size: int) -> None:
    rng, passes = np.random.default_rng(batch_size), 0
    for _ in range(40):
        classes = int(rng.integers(1, 12))
        rows = rng.integers(0, 40, classes)
        rows[0] += 1
        ends = np.sort(rng.integers(1, classes + 1, int(rng.integers(1, 6))))
        draws = [Draws(int(rng.integers(0, 400)), int(end)) for end in ends]
        segments = drawn(rows, draws)
        positions = sum(stage.positions for stage in draws)
        if not positions:
            assert segments == []
            continue
        served = classes_served(segments, Strata(batch_size, seed=1), positions)
        passes = max(passes, brute_passes(rows, draws, served))
        before = np.zeros(classes, np.int64)
        for segment in segments:
            assert np.array_equal(segment.served, before)
            before += np.diff(segment.bounds) * segment.repeats
        assert np.array_equal(draws_per_class(segments), np.bincount(served, minlength=classes))
    assert passes > 5


def test_without_it_draws_go_by_the_pools_proportions() -> None:
    rows = np.array([10, 0, 25, 5, 60])
    draws = [Draws(33, 1), Draws(70, 3), Draws(1000, 5)]
    segments = drawn(rows, draws, once_per_pass=False)
    for segment, stage in zip(segments, draws, strict=True):
        assert (segment.length, segment.repeats) == (stage.positions, 1)
        pool = np.where(np.arange(5) < stage.classes, rows, 0)
        assert np.abs(np.diff(segment.bounds) - pool * stage.positions / pool.sum()).max() < 1
    once = drawn(rows, draws)
    # a pool that grows owes the new rows: with passes they come first, without they get their share alone
    assert draws_per_class(once)[3] > draws_per_class(segments)[3] or draws_per_class(once)[4] > 600


@pytest.mark.parametrize("once_per_pass", [True, False])
def test_a_small_class_gets_its_share_over_many_segments(once_per_pass: bool) -> None:
    """30 of 1000 rows, ten at a time: 0.3 a segment, always rounded down with a phase that stays."""
    rows, segments = np.array([400, 30, 570]), 300
    total = np.zeros(3, np.int64)
    for epoch in range(segments):
        (segment,) = cut_segments(rows, [Draws(10, 3)], once_per_pass=once_per_pass, seed=3, epoch=epoch)
        total += np.diff(segment.bounds)
    many = draws_per_class(drawn(rows, [Draws(10, 3)] * segments, once_per_pass=False))
    for found in (total, many):
        # 300 draws of 0 or 1 at probability 0.3: 90 ± 5 deviations of √(300 · 0.3 · 0.7) = 7.9
        assert abs(int(found[1]) - 90) < 40
        assert abs(int(found[0]) - 1200) < 40
        assert found.sum() == 3000


def test_shares_of_billions_of_rows_do_not_overflow() -> None:
    rows = np.array([1 << 40, 3, (1 << 41) + 7])
    length = (1 << 36) + 11
    assert int(rows.sum()) * length > 1 << 64
    (segment,) = drawn(rows, [Draws(length, 3)], once_per_pass=False)
    taken = np.diff(segment.bounds).tolist()
    assert sum(taken) == length
    for count, of in zip(taken, rows.tolist(), strict=True):
        assert abs(count - Fraction(of * length, int(rows.sum()))) < 1
    strata = Strata(32, seed=1)
    within = np.concatenate([np.arange(5000), length - 1 - np.arange(5000)])
    places = strata.places(within, length)
    assert len(np.unique(places)) == len(within)
    assert places.min() >= 0
    assert places.max() < length


def test_positions_find_their_segments() -> None:
    rows = np.array([5, 3])
    segments = drawn(rows, [Draws(4, 1), Draws(30, 2)])
    assert len(segments) > 2
    positions = np.random.default_rng(0).permutation(34)
    seen = np.zeros(34, int)
    for segment, chosen in positions_by_segment(segments, positions):
        assert ((positions[chosen] >= segment.start) & (positions[chosen] < segment.end)).all()
        seen[chosen] += 1
    assert (seen == 1).all()
    assert list(positions_by_segment(segments, positions[:0])) == []
    assert segments[-1].end == 34
    shifted = cut_segments(rows, [Draws(6, 2)], once_per_pass=True, seed=0, epoch=0, start=100)
    assert (shifted[0].start, shifted[-1].end) == (100, 106)


def test_steps_are_even_and_visit_all() -> None:
    for size in [*range(1, 300), 1000, 4096, 99_991, 223_092_870]:
        strata = Strata(size, seed=0) if size < 5000 else None
        if strata is not None:
            assert np.array_equal(np.sort(strata.places(np.arange(size), size)), np.arange(size))
        if strata is not None and size >= 64:
            half = strata.places(np.arange(size), size) < size // 2
            for start in range(0, size - 32, 16):
                assert abs(int(half[start : start + 32].sum()) - 16) <= 3

"""Lists of rows and counts for the study of a curriculum: against sorts of the whole, whatever the blocks."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest

from distill_dist.curriculum.scores import Columns, Fresh, advance, blank
from distill_dist.curriculum.study import (
    BINS,
    Extremes,
    Largest,
    class_counts,
    confidence_edges,
    exposure,
    histogram,
    movement,
    suspicion,
    transitions,
)


def history(rows: list[list[float]]) -> Columns:
    """The records after snapshots in which p(true) of each row went so; all are of class 0, below ⅓ 1 is predicted."""
    columns = blank(len(rows))
    for turn in range(max(map(len, rows))):
        p = np.array([row[turn] if turn < len(row) else math.nan for row in rows], np.float32)
        fresh = Fresh(
            confidence=p,
            loss=-np.log(p),
            predicted=(p < 1 / 3).astype(np.uint16),
            labels=np.zeros(len(rows), np.int32),
            seen=~np.isnan(p),
            teacher_loss=np.full(len(rows), np.nan, np.float32),
        )
        columns = advance(columns, fresh, smoothing=0)
    return columns


def part(columns: Columns, start: int, end: int) -> Columns:
    return Columns(**{name: column[start:end] for name, column in vars(columns).items()})


# ------------------------------------------------------------------ lists


@pytest.mark.parametrize("k", [1, 7, 100, 1000])
@pytest.mark.parametrize("levels", [1, 3, 10**6])
def test_the_largest_of_all_blocks_in_any_order(k: int, levels: int) -> None:
    """Few levels: nearly everything ties, and the rows that count are those of the lowest numbers."""
    draws = np.random.default_rng(levels)
    values = (draws.integers(0, levels, 500) / 7).astype(np.float32)
    values[draws.integers(0, 500, 50)] = np.nan
    values[draws.integers(0, 500, 3)] = np.inf
    values[draws.integers(0, 500, 3)] = -np.inf
    known = np.flatnonzero(~np.isnan(values))
    expected = known[np.lexsort((known, -values[known]))][:k]
    bounds = [0, 1, 1, 90, 91, 300, 500]
    for turn in range(3):
        blocks = list(itertools.pairwise(bounds))
        np.random.default_rng(turn).shuffle(blocks)
        largest = Largest(k)
        for start, end in blocks:
            largest.add(start, values[start:end])
        found = largest.listed()
        assert found.rows.tolist() == expected.tolist()
        assert found.values.tolist() == values[expected].tolist()


def test_hardest_easiest_and_most_forgotten() -> None:
    score = np.array([0.5, 0.1, np.nan, 0.9, 0.1, 0.7], np.float32)
    forgotten = np.array([1, 0, 0, 300, 1, 1], np.uint16)
    mean = np.array([0.5, 0.1, 0.0, 1.0, 0.1, 0.5], np.float32)  # 300 × right on the whole, still first
    block = replace(history([[0.9]] * 6), score=score, forgotten=forgotten, mean=mean)
    study = Extremes(3)
    for start in (0, 2, 4):
        study.add(10 + start, part(block, start, start + 2), np.zeros(2, np.int32))
    assert study.hardest().rows.tolist() == [11, 14, 10]  # the row without a score is in no list
    assert study.hardest().values.tolist() == pytest.approx([0.1, 0.1, 0.5])
    assert study.easiest().rows.tolist() == [13, 15, 10]
    assert study.most_forgotten().rows.tolist() == [
        13,
        14,
        10,
    ]  # among equals the lower mean, then the number
    assert study.most_forgotten().values.tolist() == [300, 1, 1]
    assert study.suspects().rows.tolist() == []


def test_suspects_stayed_low_changed_little_and_the_model_says_otherwise() -> None:
    stories = [
        [0.02, 0.01, 0.02, 0.01],  # wrong label
        [0.9, 0.02, 0.9, 0.02],  # fluctuates
        [0.02, 0.01, 0.9, 0.98],  # learnt in the end
        [0.3, 0.32, 0.28, 0.3],  # torn between the classes
        [0.01],  # as low as the first, seen once
        [],  # never seen
        [0.4, 0.4, 0.4, 0.4],  # low, yet the largest of three
    ]
    block = history(stories)
    found = suspicion(block, np.zeros(7, np.int32))
    order = np.argsort(-found)
    assert order[:4].tolist() == [0, 4, 3, 1]
    assert np.isnan(found[[2, 5, 6]]).all()
    assert ((found[order[:4]] > 0) & (found[order[:4]] < 1)).all()
    # by hand: mean 0.015, Σ(p − mean)² = 4 · 0.005², 1/12 more over one row more; float32 holds 7 digits
    expected = (1 - 0.015 - math.sqrt((4 * 0.005**2 + 1 / 12) / 5)) * (1 - 0.01)
    assert found[0] == pytest.approx(expected, rel=1e-6)
    # were class 1 the label, the model would agree where it predicts it
    assert np.isnan(suspicion(block, np.ones(7, np.int32))[[0, 4]]).all()


def test_a_snapshot_without_a_number_accuses_nobody() -> None:
    block = history([[0.02, 0.01]])
    gone = replace(block, loss=np.array([np.nan], np.float32))
    beyond = replace(block, loss=np.array([np.inf], np.float32))
    assert np.isnan(suspicion(gone, np.zeros(1, np.int32))).all()
    assert np.isfinite(suspicion(beyond, np.zeros(1, np.int32))).all()


# ------------------------------------------------------------------ counts


def test_a_histogram_loses_no_number_and_adds_up() -> None:
    edges = confidence_edges("true_probability", 3)
    values = np.array([0.0, 0.019, 0.02, 0.5, 1.0, 1.5, -0.5, np.inf, -np.inf, np.nan], np.float32)
    found = histogram(values, edges)
    assert found.sum() == 9
    # 0, 0.019, −0.5, −∞ below; float32's 0.02 lies below the float64 edge
    assert found[0] == 5
    assert found[25] == 1
    assert found[-1] == 3
    halves = [histogram(part, edges) for part in (values[:4], values[4:])]
    assert (halves[0] + halves[1]).tolist() == found.tolist()
    assert histogram(values[:0], edges).tolist() == [0] * BINS


@pytest.mark.parametrize(
    ("measure", "ends"),
    [
        ("true_probability", (0, 1)),
        ("max_probability", (0, 1)),
        ("margin", (0, 1)),
        ("entropy", (-math.log(4), 0)),
        ("loss", (-8, 0)),
    ],
)
def test_bins_cover_the_measure(measure: str, ends: tuple[float, float]) -> None:
    edges = confidence_edges(measure, 4)
    assert (edges[0], edges[-1]) == pytest.approx(ends)
    assert len(edges) == BINS + 1
    assert (np.diff(edges) > 0).all()


def test_classes_of_the_admitted_rows() -> None:
    labels = np.array([2, 0, 0, 2, 1], np.int32)
    assert class_counts(labels, np.array([True, True, False, True, False]), 4).tolist() == [1, 0, 2, 0]


def test_movement_is_that_of_the_single_rows() -> None:
    """Against ρ of the rows' own mean ranks: Pearson's correlation of ranks, ties sharing theirs."""
    draws = np.random.default_rng(0)
    before = draws.integers(0, 10, 2000)
    after = np.clip(before + draws.integers(-2, 3, 2000), 0, 9)
    table = transitions(before[:700], after[:700]) + transitions(before[700:], after[700:])
    assert table.sum() == 2000
    assert table[3, 4] == ((before == 3) & (after == 4)).sum()
    found = movement(table)
    assert found.moved == (before != after).sum()
    assert found.share == found.moved / 2000
    assert found.distance == pytest.approx(np.abs(before - after).mean(), rel=1e-12)

    def ranks(parts: np.ndarray) -> np.ndarray:
        return np.array([(parts < part).sum() + ((parts == part).sum() - 1) / 2 for part in parts])

    assert found.spearman == pytest.approx(np.corrcoef(ranks(before), ranks(after))[0, 1], abs=1e-12)
    assert movement(np.diag([5, 5])).spearman == pytest.approx(1)
    assert movement(np.diag([5, 5])[::-1]).spearman == pytest.approx(-1)
    assert math.isnan(movement(np.array([[5, 0], [0, 0]])).spearman)


def test_exposure_by_tenths() -> None:
    # levels that are tenths: their own quotients
    assert exposure(np.arange(10) * 6, np.full(10, 3)).tolist() == pytest.approx((np.arange(10) * 2).tolist())
    # the easier half served twice, the rest never; an empty level between them
    assert exposure(np.array([10, 0, 0]), np.array([5, 0, 5])).tolist() == pytest.approx([2] * 5 + [0] * 5)
    # a cut inside the third tenth: half of that tenth's rows were served
    found = exposure(np.array([25, 0]), np.array([25, 75]))
    assert found.tolist() == pytest.approx([1, 1, 0.5] + [0] * 7)
    assert found.sum() * 100 / 10 == pytest.approx(25)  # nothing served is lost

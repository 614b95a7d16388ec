"""λ per row: every rule against its formula, what is not known, the controls, a mean that any split agrees on."""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from distill_dist.curriculum.order import rows_at
from distill_dist.curriculum.reliance import (
    Reliance,
    bell,
    fixed_point_sum,
    gate,
    largest,
    mean_from,
    ramp,
    weighted,
)

# Half a unit in the last place of a float32 below 1, and what float64 adds to it.
ROUNDING = 2.0**-24 + 1e-12
NAN, INF = math.nan, math.inf
ROWS = 1000


def f4(*values: float) -> np.ndarray:
    return np.array(values, dtype=np.float32)


def spread(low: float, high: float, *, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).uniform(low, high, ROWS).astype(np.float32)


# ------------------------------------------------------------------ rules


def test_gate_opens_above_the_threshold_and_not_at_it() -> None:
    found = gate(np.array([0.0, 0.25, 0.250001, 1.0]), threshold=0.25, minimum=0.125, maximum=0.75)
    assert found.dtype == np.float32
    assert found.tolist() == [0.125, 0.125, 0.75, 0.75]
    assert gate(np.array([0.0, 1.0]), threshold=1.0, minimum=0.125, maximum=0.75).tolist() == [0.125] * 2


def test_ramp_follows_its_formula() -> None:
    percentile = spread(0, 1, seed=1)
    found = ramp(percentile, minimum=0.1, maximum=0.7)
    assert found.dtype == np.float32
    for d, value in zip(percentile.tolist(), found.tolist(), strict=True):
        assert value == pytest.approx(0.1 + (0.7 - 0.1) * d, abs=ROUNDING)
    ends = ramp(np.array([0.0, 0.5, 1.0]), minimum=0.25, maximum=0.75)
    assert ends.tolist() == [0.25, 0.5, 0.75]


def test_bell_follows_its_formula() -> None:
    probability = spread(0, 1, seed=2)
    found = bell(probability, minimum=0.1, maximum=0.7)
    assert found.dtype == np.float32
    for p, value in zip(probability.tolist(), found.tolist(), strict=True):
        assert value == pytest.approx(0.1 + (0.7 - 0.1) * 4 * p * (1 - p), abs=ROUNDING)
    assert bell(f4(0, 0.5, 1), minimum=0.25, maximum=0.75).tolist() == [0.25, 0.75, 0.25]


def test_weighted_follows_its_formula() -> None:
    loss, teacher_loss = spread(0, 3, seed=3), spread(0.01, 3, seed=4)
    found = weighted(loss, teacher_loss)
    assert found.dtype == np.float32
    for ours, theirs, value in zip(loss.tolist(), teacher_loss.tolist(), found.tolist(), strict=True):
        assert value == pytest.approx(1 - math.exp(-ours / theirs), abs=ROUNDING)


def test_a_small_ratio_keeps_its_digits() -> None:
    """1 − exp(−x) in float64 has 1e-16 / x of error, 1e-2 of the value at 1e-14."""
    assert weighted(f4(1e-14), f4(1.0))[0] == pytest.approx(1e-14, rel=1e-6, abs=0)


@pytest.mark.parametrize(
    ("loss", "teacher_loss", "expected"),
    [
        (0.7, 0.0, 1.0),  # the limit
        (0.7, 1e-40, 1.0),  # a ratio beyond float32
        (INF, 0.7, 1.0),
        (INF, 0.0, 1.0),
        (0.0, 0.7, 0.0),
        (0.0, 0.0, 0.0),  # nothing left to learn
        (0.0, INF, 0.0),
        (0.7, INF, 0.0),
        (INF, INF, NAN),
        (NAN, 0.7, NAN),
        (0.7, NAN, NAN),
        (NAN, 0.0, NAN),
        (0.0, NAN, NAN),
    ],
)
def test_weighted_at_the_edges(loss: float, teacher_loss: float, expected: float) -> None:
    losses = f4(loss, 0.5), f4(teacher_loss, 0.25)
    found = weighted(*losses)
    assert np.array_equal(found, f4(expected, -math.expm1(-2)), equal_nan=True)
    # its arguments stay what they were
    assert np.array_equal(losses[0], f4(loss, 0.5), equal_nan=True)
    assert np.array_equal(losses[1], f4(teacher_loss, 0.25), equal_nan=True)


def test_the_largest_lambda_of_a_rule() -> None:
    assert [largest(rule, 0.6) for rule in ("gate", "ramp", "bell", "weighted")] == [0.6, 0.6, 0.6, 1.0]


# ------------------------------------------------------------------ rows

PERCENTILE = np.random.default_rng(5).permutation(ROWS) / (ROWS - 1)
COLUMNS = {
    "score": spread(0, 1, seed=6),
    "loss": spread(0, 3, seed=7),
    "teacher_loss": spread(0.01, 3, seed=8),
}
SOME = np.array([7, 3, 999, 3, 0])
EVERYTHING = np.arange(ROWS)


def reliance(rule: str = "ramp", *, columns: dict[str, np.ndarray] = COLUMNS, **changed: Any) -> Reliance:
    found = Reliance(
        rule,  # type: ignore[arg-type]
        initial=0.3,
        minimum=0.1,
        maximum=0.7,
        threshold=0.4,
        num_rows=ROWS,
        seed=11,
        percentile_at=lambda rows: PERCENTILE[rows],
        column_at=lambda name, rows: columns[name][rows],
    )
    return replace(found, **changed)


EXPECTED = {
    "gate": gate(PERCENTILE, threshold=0.4, minimum=0.1, maximum=0.7),
    "ramp": ramp(PERCENTILE, minimum=0.1, maximum=0.7),
    "bell": bell(COLUMNS["score"], minimum=0.1, maximum=0.7),
    "weighted": weighted(COLUMNS["loss"], COLUMNS["teacher_loss"]),
}
RULES = tuple(EXPECTED)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("rows", [SOME, EVERYTHING, np.array([], dtype=np.int64)])
def test_rows_get_what_their_rule_says(rule: str, rows: np.ndarray) -> None:
    found = reliance(rule).of(rows)
    assert found.dtype == np.float32
    assert np.array_equal(found, EXPECTED[rule][rows])
    by_rule, unknown = reliance(rule).ruled(rows)
    assert np.array_equal(by_rule, found)
    assert unknown == 0


def test_the_rules_differ() -> None:
    kinds = [tuple(reliance(rule).of(SOME).tolist()) for rule in RULES]
    assert len(set(kinds)) == len(RULES)


def test_bell_reads_the_loss_where_the_score_is_no_probability() -> None:
    columns = {**COLUMNS, "score": -COLUMNS["loss"]}  # as of `measure: loss`
    found = reliance("bell", columns=columns, score_is_probability=False).of(EVERYTHING)
    for loss, value in zip(COLUMNS["loss"].tolist(), found.tolist(), strict=True):
        p = math.exp(-loss)
        assert value == pytest.approx(0.1 + (0.7 - 0.1) * 4 * p * (1 - p), abs=ROUNDING)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("control", ["none", "permuted"])
def test_before_the_first_snapshot_all_rows_are_alike(rule: str, control: str) -> None:
    found = reliance(rule, control=control, percentile_at=None, column_at=None)
    assert found.of(SOME).tolist() == f4(*[0.3] * 5).tolist()
    assert found.ruled(SOME)[1] == 5


@pytest.mark.parametrize(
    ("rule", "missing"), [("bell", "score"), ("weighted", "loss"), ("weighted", "teacher_loss")]
)
def test_rows_that_the_snapshot_does_not_know_have_the_initial_value(rule: str, missing: str) -> None:
    holes = COLUMNS[missing].copy()
    holes[[3, 0]] = NAN
    found, unknown = reliance(rule, columns={**COLUMNS, missing: holes}).ruled(SOME)
    expected = EXPECTED[rule][SOME]
    expected[[1, 3, 4]] = 0.3
    assert np.array_equal(found, expected)
    assert unknown == 3


def test_a_row_without_a_rank_is_a_defect() -> None:
    with pytest.raises(AssertionError, match="rank"):
        reliance("gate", percentile_at=lambda rows: np.full(len(rows), NAN)).of(SOME)


# ------------------------------------------------------------------ controls


@pytest.mark.parametrize("rule", RULES)
def test_permuted_gives_the_same_values_to_other_rows(rule: str) -> None:
    plain = reliance(rule).of(EVERYTHING)
    found = reliance(rule, control="permuted").of(EVERYTHING)
    assert np.array_equal(np.sort(found), np.sort(plain))
    # two values of shares q and 1 − q meet by chance on q² + (1 − q)² of the rows: 0.52 for the gate
    assert (found == plain).mean() < (0.6 if rule == "gate" else 0.02)
    # of 1000 independent pairs a correlation deviates by 1/√1000
    assert abs(np.corrcoef(found, plain)[0, 1]) < 4 / math.sqrt(ROWS)
    # a row's value does not depend on which rows are asked for beside it
    assert np.array_equal(reliance(rule, control="permuted").of(SOME), found[SOME])
    other = reliance(rule, control="permuted", seed=12).of(EVERYTHING)
    assert not np.array_equal(other, found)
    assert np.array_equal(np.sort(other), np.sort(plain))


def test_who_gets_whose_value_is_no_order_that_rows_are_trained_in() -> None:
    """Under the run's own seed, in any of its epochs."""
    identity = reliance(
        "ramp", control="permuted", minimum=0.0, maximum=1.0, percentile_at=lambda rows: rows / (ROWS - 1)
    )
    whose = np.rint(identity.of(EVERYTHING).astype(np.float64) * (ROWS - 1)).astype(np.int64)
    assert np.array_equal(np.sort(whose), EVERYTHING)
    for epoch in range(20):
        assert (whose == rows_at(EVERYTHING, ROWS, seed=11, epoch=epoch)).sum() < 10  # 1 by chance


@pytest.mark.parametrize("rule", RULES)
def test_mean_matched_is_the_mean_of_all_rows(rule: str) -> None:
    plain = reliance(rule)
    mean = mean_from(fixed_point_sum(plain.ruled(EVERYTHING)[0]), ROWS)
    exact = sum(map(Fraction, EXPECTED[rule].tolist())) / ROWS
    assert mean == pytest.approx(float(exact), abs=2.0**-33)
    found = replace(plain, control="mean_matched", mean=mean).of(SOME)
    assert found.dtype == np.float32
    assert found.tolist() == f4(*[mean] * 5).tolist()
    with pytest.raises(AssertionError, match="mean"):
        replace(plain, control="mean_matched").of(SOME)


# ------------------------------------------------------------------ the mean


@pytest.mark.parametrize("parts", [1, 2, 3, 7, ROWS])
def test_every_split_into_processes_has_the_same_sum(parts: int) -> None:
    """Floating point has not: that is why it is integers."""
    values = EXPECTED["weighted"]
    pieces = np.array_split(np.random.default_rng(parts).permutation(values), parts)
    assert sum(fixed_point_sum(piece) for piece in pieces) == fixed_point_sum(values)


def test_sums_are_exact_above_a_256th_and_to_half_a_unit_below() -> None:
    assert fixed_point_sum(f4(1, 0.5, 2.0**-8 + 2.0**-31)) == 2**32 + 2**31 + 2**24 + 2
    assert fixed_point_sum(f4(2.0**-32, 2.0**-33, 3 * 2.0**-34)) == 1 + 0 + 1
    assert fixed_point_sum(f4()) == 0
    assert mean_from(2**32 + 2**31, 3) == 0.5


def test_a_mean_of_two_billion_rows_does_not_overflow() -> None:
    rows = 2**31 - 1
    total = rows * fixed_point_sum(f4(1.0))
    assert np.iinfo(np.int64).max >= total > np.iinfo(np.int64).max - 2**33
    assert mean_from(total, rows) == 1.0
    for refused in (0, rows + 1):
        with pytest.raises(AssertionError):
            mean_from(0, refused)

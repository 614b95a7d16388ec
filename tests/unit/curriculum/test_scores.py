"""Measures against the formulas written out, records against the history they stand for."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import get_args, get_type_hints

import numpy as np
import pytest

from distill_dist.config.schema_curriculum import CurriculumConfig
from distill_dist.curriculum.scores import (
    COLUMN_TYPES,
    LARGEST_COUNT,
    MEASURES,
    UNKNOWN,
    Columns,
    Fresh,
    advance,
    blank,
    cross_entropy,
    fresh_from_logits,
    given,
    measure,
)

ROUNDING = 2.0**-24  # relative: half a unit of float32's last place; all before it is float64


def probabilities(row: list[float]) -> list[float]:
    exponentials = [math.exp(value) for value in row]
    return [value / sum(exponentials) for value in exponentials]


FORMULAS = {
    "true_probability": lambda p, label: p[label],
    "max_probability": lambda p, label: max(p),
    "margin": lambda p, label: sorted(p)[-1] - sorted(p)[-2],
    "entropy": lambda p, label: sum(x * math.log(x) for x in p),
    "loss": lambda p, label: math.log(p[label]),
}


def some_logits(rows: int = 40, classes: int = 3) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(5)
    return generator.normal(0, 3, (rows, classes)), generator.integers(0, classes, rows)


def fresh_of(confidence: list[float], loss: list[float] | None = None, **more: np.ndarray) -> Fresh:
    rows = len(confidence)
    values = {
        "predicted": np.zeros(rows, np.uint16),
        "labels": np.zeros(rows, np.int64),
        "seen": np.ones(rows, bool),
        "teacher_loss": np.full(rows, np.nan, np.float32),
        **more,
    }
    return Fresh(np.float32(confidence), np.float32(confidence if loss is None else loss), **values)


def same(one: Columns, other: Columns) -> bool:
    return all(getattr(one, name).tobytes() == getattr(other, name).tobytes() for name in COLUMN_TYPES)


def test_every_measure_of_the_configuration_is_here() -> None:
    assert set(MEASURES) == set(get_args(get_type_hints(CurriculumConfig)["measure"])) == set(FORMULAS)


@pytest.mark.parametrize("name", sorted(FORMULAS))
@pytest.mark.parametrize("classes", [2, 3, 5])
def test_a_measure_is_its_formula(name: str, classes: int) -> None:
    logits, labels = some_logits(classes=classes)
    found = measure(name, logits, labels)
    expected = [
        FORMULAS[name](probabilities(row), label) for row, label in zip(logits.tolist(), labels, strict=True)
    ]
    assert found.dtype == np.float32
    # float64's own errors: a margin cancels to no less than 1e-4 here, of terms of at most 1 with 1e-15 each
    np.testing.assert_allclose(found, expected, rtol=ROUNDING + 1e-11, atol=0)


def test_the_measures_differ_and_are_larger_where_a_row_is_easier() -> None:
    logits, labels = np.array([[4.0, 0.0, 0.0], [0.5, 0.0, 0.2]]), np.array([0, 0])
    values = {name: measure(name, logits, labels) for name in MEASURES}
    assert all(easy > hard for easy, hard in values.values())
    wrong = {name: measure(name, logits, np.array([1, 0]))[0] for name in MEASURES}
    assert {name for name in MEASURES if wrong[name] != values[name][0]} == {"true_probability", "loss"}
    assert len({float(value) for value in wrong.values()}) == len(MEASURES)


@pytest.mark.parametrize("name", sorted(MEASURES))
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_logit_that_is_not_finite_gives_nan_in_its_row_only(name: str, bad: float) -> None:
    logits, labels = some_logits(rows=3)
    expected = measure(name, logits, labels)
    logits[1, 2] = bad
    found = measure(name, logits, labels)
    assert np.isnan(found).tolist() == [False, True, False]
    assert found[[0, 2]].tolist() == expected[[0, 2]].tolist()


@pytest.mark.parametrize("name", sorted(MEASURES))
def test_extreme_logits_stay_finite(name: str) -> None:
    limit = np.finfo(np.float64).max
    logits = np.array([[limit, -limit], [-limit, limit], [1e4, -1e4], [0.0, 0.0]])
    found = measure(name, logits, np.zeros(4, np.int64))
    assert np.isfinite(found).all()
    assert not (np.signbit(found) & (found == 0)).any()
    losses = cross_entropy(logits, np.zeros(4, np.int64))
    assert not (np.signbit(losses) & (losses == 0)).any()
    if name == "loss":
        assert found[1] == -np.finfo(np.float32).max
        assert found[2] == 0


def test_no_rows_give_no_values() -> None:
    assert measure("margin", np.zeros((0, 3)), np.zeros(0, np.int64)).shape == (0,)
    assert (
        len(advance(None, fresh_from_logits("loss", np.zeros((0, 2)), np.zeros(0, np.int64)), smoothing=0.5))
        == 0
    )


def test_a_label_without_a_class_is_refused() -> None:
    for label in (-1, 3):
        with pytest.raises(AssertionError, match="no class"):
            measure("true_probability", np.zeros((1, 3)), np.array([label]))


def test_a_pass_says_everything_of_its_rows() -> None:
    logits, labels = some_logits(rows=4)
    logits[2, 0] = np.nan
    fresh = fresh_from_logits("margin", logits.astype(np.float32), labels)
    assert fresh.predicted.tolist() == [*logits[:2].argmax(axis=1), UNKNOWN, logits[3].argmax()]
    assert fresh.scored.tolist() == [True, True, False, True]
    assert fresh.num_nan == 1
    assert np.isnan(fresh.teacher_loss).all()
    known = fresh_from_logits("margin", logits, labels, teacher_loss=np.arange(4.0))
    assert known.teacher_loss.tolist() == [0, 1, 2, 3]
    np.testing.assert_array_equal(known.loss, -measure("loss", logits, labels))
    np.testing.assert_array_equal(known.loss, cross_entropy(logits, labels))


def test_rows_that_were_not_served_are_not_counted_as_nan() -> None:
    fresh = fresh_of([np.nan, np.nan, 0.5], seen=np.array([True, False, False]))
    assert fresh.num_nan == 1
    assert not fresh.scored.any()


def test_the_first_snapshot_is_taken_whole() -> None:
    fresh = fresh_of([0.25, 0.5], [1.0, 2.0], predicted=np.array([3, 1], np.uint16))
    columns = advance(None, fresh, smoothing=0.9)
    assert columns.score.tolist() == [0.25, 0.5]
    assert columns.loss.tolist() == [1.0, 2.0]
    assert columns.predicted.tolist() == [3, 1]
    assert columns.count.tolist() == [1, 1]
    assert columns.m2.tolist() == [0.0, 0.0]
    np.testing.assert_allclose(columns.mean, np.exp([-1.0, -2.0]), rtol=ROUNDING)
    assert same(columns, advance(blank(2), fresh, smoothing=0.0))


def test_the_score_is_the_moving_average() -> None:
    columns = None
    for value in (1.0, 0.0, 0.5):
        columns = advance(columns, fresh_of([value]), smoothing=0.75)
    assert columns is not None
    assert columns.score[0] == 0.75 * 0.75 + 0.25 * 0.5  # exact in binary
    assert columns.loss[0] == 0.5


def test_the_variability_is_that_of_the_whole_history() -> None:
    history = np.random.default_rng(0).uniform(0.01, 3, (7, 50)).astype(np.float32)
    columns = None
    for losses in history:
        columns = advance(columns, fresh_of(losses, losses), smoothing=0.5)
    assert columns is not None
    seen = np.exp(-history.astype(np.float64))
    # 7 roundings to float32, of a mean and of a sum of squares, both of at most 1 and 7/4
    np.testing.assert_allclose(columns.mean, seen.mean(axis=0), rtol=0, atol=7 * ROUNDING)
    np.testing.assert_allclose(columns.m2 / columns.count, seen.var(axis=0), rtol=0, atol=4 * 7 * ROUNDING)
    assert columns.count.tolist() == [7] * 50


def test_forgetting_is_going_from_right_to_wrong() -> None:
    columns = None
    forgotten = []
    #              right, wrong, wrong, right, not seen, wrong
    for predicted in (1, 0, 2, 1, None, 2):
        fresh = fresh_of(
            [0.5],
            predicted=np.array([predicted or 0], np.uint16),
            labels=np.array([1]),
            seen=np.array([predicted is not None]),
        )
        columns = advance(columns, fresh, smoothing=0.5)
        forgotten.append(int(columns.forgotten[0]))
    assert forgotten == [0, 1, 1, 1, 1, 2]


@pytest.mark.parametrize("why", ["nan confidence", "nan loss", "not seen"])
def test_a_row_without_a_number_keeps_its_record(why: str) -> None:
    before = advance(None, fresh_of([0.25, 0.75], teacher_loss=np.float32([1, 2])), smoothing=0.5)
    values, losses, seen = [0.5, 0.5], [0.1, 0.1], np.array([True, True])
    if why == "not seen":
        seen[0] = False
    else:
        (values if why == "nan confidence" else losses)[0] = np.nan
    fresh = fresh_of(values, losses, seen=seen, predicted=np.array([9, 9], np.uint16))
    after = advance(before, fresh, smoothing=0.5)
    for name in COLUMN_TYPES:
        assert getattr(after, name)[0] == getattr(before, name)[0], name
    assert after.score.tolist() == [0.25, 0.625]
    assert after.count.tolist() == [1, 2]


def test_a_row_never_scored_has_no_score_until_it_is() -> None:
    columns = advance(None, fresh_of([np.nan, 0.5]), smoothing=0.5)
    assert np.isnan(columns.score).tolist() == [True, False]
    assert columns.count.tolist() == [0, 1]
    assert columns.predicted.tolist() == [UNKNOWN, 0]
    assert advance(columns, fresh_of([0.5, 0.5]), smoothing=0.5).score.tolist() == [0.5, 0.5]


@pytest.mark.parametrize("smoothing", [0.0, 0.5])
@pytest.mark.parametrize("before", [np.inf, -np.inf])
def test_an_infinite_score_does_not_stay(before: float, smoothing: float) -> None:
    columns = given(np.float32([before, 0.5, 0.5]))
    after = advance(columns, fresh_of([0.25, np.inf, -np.inf], [1.0, 1.0, 1.0]), smoothing=smoothing)
    assert after.score.tolist() == [0.25, np.inf, -np.inf]
    after = advance(after, fresh_of([0.5, -np.inf, 0.5], [1.0, 1.0, 1.0]), smoothing=smoothing)
    assert after.score[1:].tolist() == [-np.inf, 0.5]


def test_the_teachers_loss_is_kept_until_there_is_a_new_one() -> None:
    columns = advance(None, fresh_of([0.5, 0.5], teacher_loss=np.float32([1, np.nan])), smoothing=0.5)
    assert columns.teacher_loss[0] == 1
    assert np.isnan(columns.teacher_loss[1])
    columns = advance(columns, fresh_of([0.5, 0.5], teacher_loss=np.float32([np.nan, 3])), smoothing=0.5)
    assert columns.teacher_loss.tolist() == [1, 3]


def test_counters_stay_at_their_largest() -> None:
    full = np.full(1, LARGEST_COUNT, np.uint16)
    columns = replace(
        given(np.float32([0.5])), count=full, forgotten=full, predicted=np.array([1], np.uint16)
    )
    after = advance(columns, fresh_of([0.5], labels=np.array([1])), smoothing=0.5)
    assert (after.count[0], after.forgotten[0]) == (LARGEST_COUNT, LARGEST_COUNT)
    assert after.predicted[0] == 0


def test_arguments_are_not_written_to() -> None:
    before = advance(None, fresh_of([0.25]), smoothing=0.5)
    copy = Columns(**{name: getattr(before, name).copy() for name in COLUMN_TYPES})
    advance(before, fresh_of([0.75]), smoothing=0.5)
    assert same(before, copy)


def test_columns_of_another_type_or_length_are_refused() -> None:
    columns = blank(3)
    with pytest.raises(AssertionError, match="loss"):
        replace(columns, loss=np.zeros(3))
    with pytest.raises(AssertionError, match="count"):
        replace(columns, count=np.zeros(2, np.uint16))
    assert given(np.arange(3)).score.tolist() == [0, 1, 2]
    assert given(np.arange(3)).count.tolist() == [0, 0, 0]

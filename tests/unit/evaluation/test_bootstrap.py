from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import f1_score

from distill_dist.evaluation import bootstrap
from distill_dist.evaluation.bootstrap import intervals
from distill_dist.evaluation.metrics import loyalty_summed, task_summed
from distill_dist.evaluation.summed import mean_of

ROWS = 150
GENERATOR = np.random.default_rng(0)
LOGITS, TEACHER = GENERATOR.standard_normal((2, ROWS, 2))
LABELS = np.where(GENERATOR.random(ROWS) < 0.7, LOGITS.argmax(1), GENERATOR.integers(2, size=ROWS))


def metrics() -> dict:
    return {**task_summed(LOGITS, LABELS, metric="f1"), **loyalty_summed(LOGITS, TEACHER)}


def test_as_scipys_percentile_bootstrap() -> None:
    """The same draws, each metric computed anew on the rows drawn: equal to rounding."""
    found = intervals(metrics(), resamples=300, seed=5)
    predicted = LOGITS.argmax(1)

    def f1(rows: np.ndarray) -> float:
        return float(f1_score(LABELS[rows], predicted[rows]))

    def pl(rows: np.ndarray) -> float:
        return loyalty_summed(LOGITS[rows], TEACHER[rows])["pl"].value

    def ece(rows: np.ndarray) -> float:
        return task_summed(LOGITS[rows], LABELS[rows], metric="accuracy")["ece"].value

    for name, statistic in (("f1", f1), ("pl", pl), ("ece", ece)):
        expected = stats.bootstrap(
            (np.arange(ROWS),), statistic, n_resamples=300, method="percentile", vectorized=False,
            rng=np.random.default_rng(5),
        ).confidence_interval  # fmt: skip
        assert expected.low < expected.high
        assert found[name] == pytest.approx((expected.low, expected.high), rel=1e-9), name


def test_accuracys_interval_is_the_binomials() -> None:
    """A resampled share is binomial. Of 4000 draws an end's level is off by 3·√(0.025·0.975/4000) = 0.0074 at most."""
    low, high = intervals(metrics(), resamples=4000, seed=0)["accuracy"]
    binomial = stats.binom(ROWS, (LOGITS.argmax(1) == LABELS).mean())
    assert binomial.ppf(0.025 - 0.0074) <= low * ROWS <= binomial.ppf(0.025 + 0.0074)
    assert binomial.ppf(0.975 - 0.0074) <= high * ROWS <= binomial.ppf(0.975 + 0.0074)


def test_it_covers_the_truth_as_often_as_it_says() -> None:
    """200 samples of 200 rows, truth 0: 95 % of intervals hold it; 3 standard deviations are 4.6 points."""
    generator, held = np.random.default_rng(0), 0
    for _ in range(200):
        low, high = intervals({"m": mean_of(generator.standard_normal(200))}, resamples=200, seed=1)["m"]
        held += low <= 0 <= high
    assert 0.904 <= held / 200 <= 0.996


def test_a_seed_gives_the_same_interval_however_the_draws_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    first = intervals(metrics(), resamples=50, seed=3)
    assert first != intervals(metrics(), resamples=50, seed=4)
    monkeypatch.setattr(bootstrap, "_DRAWN_AT_ONCE", 7 * ROWS)
    again = intervals(metrics(), resamples=50, seed=3)
    for name, ends in first.items():
        assert again[name] == pytest.approx(ends, rel=1e-12), name


def test_more_rows_make_it_narrower() -> None:
    def width(rows: int) -> float:
        low, high = intervals({"m": mean_of(np.arange(rows) % 2)}, resamples=500, seed=0)["m"]
        return high - low

    assert width(400) == pytest.approx(2 * width(1600), rel=0.2)


def test_rows_without_a_value_are_drawn_and_not_counted() -> None:
    values = np.where(np.arange(ROWS) % 2, np.nan, np.arange(ROWS))
    assert mean_of(values).value == np.nanmean(values)
    found = intervals(
        {"half": mean_of(values), "none": mean_of(np.full(ROWS, np.nan))}, resamples=100, seed=0
    )
    low, high = found["half"]
    assert low < np.nanmean(values) < high
    assert found["none"] is None
    assert math.isnan(mean_of(np.full(ROWS, np.nan)).value)
    assert intervals({}, resamples=10, seed=0) == {}

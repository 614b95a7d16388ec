"""Known answers: closed forms, and scipy where it has the same thing."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pytest
from scipy import stats

from distill_dist.report.statistics import Scored, deviation, holm, paired_bootstrap, seed_test


def first_by_second(sums: np.ndarray) -> np.ndarray:
    return sums[..., 0] / sums[..., 1]


@dataclass(frozen=True)
class Mean:
    """A mean over rows, as accuracy is."""

    columns_ND: np.ndarray
    of = staticmethod(first_by_second)


def mean_of(values: np.ndarray) -> Scored:
    return Mean(np.stack([values, np.ones(len(values))], axis=1).astype(np.float64))


def right_or_wrong(rows: int, *, better: float) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    theirs = rng.random(rows) < 0.8
    ours = np.where(rng.random(rows) < better, True, theirs)
    return ours, theirs


@pytest.mark.parametrize("rows", [300, 2000])
@pytest.mark.parametrize("kind", ["patterns", "rows"])
def test_the_interval_is_that_of_the_normal_law_for_many_rows(rows: int, kind: str) -> None:
    """The paired difference has variance var(d)/n. Of B = 10,000 draws a quantile's own error is 2 % of σ."""
    ours, theirs = right_or_wrong(rows, better=0.05)
    d = ours.astype(float) - theirs
    if kind == "rows":  # no two alike, so that rows are drawn one by one
        d = d + 1e-9 * np.arange(rows)
        found = paired_bootstrap([[mean_of(d)]], [[mean_of(np.zeros(rows))]])
    else:
        found = paired_bootstrap([[mean_of(ours)]], [[mean_of(theirs)]])
    sigma = d.std() / math.sqrt(rows)
    assert found.value == pytest.approx(d.mean(), abs=1e-6)
    # a count of a few dozen rows is skewed and discrete: a tenth of σ, beside the 2 %
    assert found.low == pytest.approx(d.mean() - 1.96 * sigma, abs=0.15 * sigma + 1 / rows)
    assert found.high == pytest.approx(d.mean() + 1.96 * sigma, abs=0.15 * sigma + 1 / rows)


def test_p_is_that_of_the_sign_test_up_to_the_methods_difference() -> None:
    """12 rows for us, 4 for them, 184 alike: the normal law gives p = 2Φ(−8/√(16 − 64/200))."""
    ours = np.r_[np.ones(12), np.zeros(4), np.ones(184)]
    theirs = np.r_[np.zeros(12), np.ones(4), np.ones(184)]
    found = paired_bootstrap([[mean_of(ours)]], [[mean_of(theirs)]], resamples=100_000)
    # the count is whole: a continuity correction of half a row moves p by a fifth
    assert found.p == pytest.approx(2 * stats.norm.cdf(-8 / math.sqrt(16 - 64 / 200)), rel=0.3)


def test_scipy_draws_the_same_distribution() -> None:
    ours, theirs = right_or_wrong(400, better=0.1)
    found = paired_bootstrap([[mean_of(ours)]], [[mean_of(theirs)]], resamples=20_000)
    reference = stats.bootstrap(
        (ours.astype(float) - theirs,), np.mean, n_resamples=20_000, method="percentile",
        rng=np.random.default_rng(5),
    ).confidence_interval  # fmt: skip
    # both are quantiles of multiples of 1/400
    assert found.low == pytest.approx(reference.low, abs=1.01 / 400)
    assert found.high == pytest.approx(reference.high, abs=1.01 / 400)


def test_rows_are_paired() -> None:
    """Equally good students that err on the same rows differ by nothing; on others, by chance."""
    rng = np.random.default_rng(0)
    right = rng.random(500) < 0.8
    same = paired_bootstrap([[mean_of(right)]], [[mean_of(right)]])
    assert (same.value, same.low, same.high, same.p) == (0.0, 0.0, 0.0, 1.0)
    other = paired_bootstrap([[mean_of(rng.permutation(right))]], [[mean_of(right)]])
    assert other.value == 0.0
    assert other.high - other.low > 0.05


def test_a_metric_that_is_no_mean_of_rows_and_several_runs() -> None:
    """F1 of the drawn rows, not a mean of something: the interval holds the plain value of each side's mean."""
    rng = np.random.default_rng(3)
    label = rng.random(600) < 0.4
    runs = [np.where(rng.random(600) < 0.1 * (k + 1), ~label, label) for k in range(3)]

    @dataclass(frozen=True)
    class F1:
        columns_ND: np.ndarray

        def of(self, sums: np.ndarray) -> np.ndarray:
            return 2 * sums[..., 0] / sums[..., 1]

    scored: list[Scored] = [
        F1(np.stack([said & label, said.astype(int) + label], axis=1).astype(float)) for said in runs
    ]
    f1 = [2 * (said & label).sum() / (said.sum() + label.sum()) for said in runs]
    found = paired_bootstrap([[one] for one in scored[:2]], [[one] for one in scored[2:]])
    assert found.value == pytest.approx((f1[0] + f1[1]) / 2 - f1[2])
    assert found.low < found.value < found.high
    assert found.p < 0.01


def test_runs_of_the_same_seed_count_once_by_their_mean() -> None:
    rng = np.random.default_rng(4)
    right = [(rng.random(500) < share).astype(float) for share in (0.9, 0.88, 0.8, 0.7)]
    first, again, second, other = (mean_of(each) for each in right)
    found = paired_bootstrap([[first, again], [second]], [[other]])
    means = [each.mean() for each in right]
    assert found.value == pytest.approx(((means[0] + means[1]) / 2 + means[2]) / 2 - means[3])
    assert found.low < found.value < found.high


def test_the_same_seed_gives_the_same_numbers_and_another_one_others() -> None:
    ours, theirs = (mean_of(values) for values in right_or_wrong(200, better=0.02))
    first, again, other = (paired_bootstrap([[ours]], [[theirs]], seed=seed) for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_shared_seeds_are_pairs() -> None:
    ours, theirs = {1: 0.90, 2: 0.85, 3: 0.88, 7: 0.1}, {1: 0.88, 2: 0.84, 3: 0.85}
    found = seed_test(ours, theirs)
    assert found is not None
    assert (found.kind, found.seeds) == ("paired", 3)
    assert found.p == pytest.approx(stats.ttest_rel([0.90, 0.85, 0.88], [0.88, 0.84, 0.85]).pvalue)


def test_other_seeds_are_samples_of_their_own() -> None:
    found = seed_test({1: 0.9, 2: 0.8}, {3: 0.7, 4: 0.75, 5: 0.6})
    assert found is not None
    assert (found.kind, found.seeds) == ("Welch", 5)
    expected = stats.ttest_ind([0.9, 0.8], [0.7, 0.75, 0.6], equal_var=False).pvalue
    assert found.p == pytest.approx(expected)


def test_what_does_not_vary_says_nothing() -> None:
    assert seed_test({1: 0.9}, {1: 0.8}) is None
    assert seed_test({1: 0.9, 2: 0.8}, {1: 0.8, 2: 0.7}) is None  # the same difference: σ is rounding
    assert seed_test({1: 0.9, 2: 0.9}, {3: 0.8, 4: 0.8}) is None
    same = seed_test({1: 0.9, 2: 0.8}, {1: 0.9, 2: 0.8})
    assert same is not None
    assert same.p == 1.0


def test_holm() -> None:
    """Holm's own way: the k-th smallest times what is left, never below the one before."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([0.2]) == [0.2]
    assert holm([]) == []


def test_deviation() -> None:
    assert deviation([1.0]) is None
    assert deviation([1.0, 3.0]) == pytest.approx(math.sqrt(2))

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import pearsonr, spearmanr

from distill_dist.evaluation.saliency import correlations, pearson_per_row

LENGTHS = (9, 4, 12, 2)
MASK_BL = np.arange(12) < np.array(LENGTHS)[:, None]


def norms(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).random((4, 12))


def spearman(student: np.ndarray, teacher: np.ndarray, mask_BL: np.ndarray = MASK_BL) -> np.ndarray:
    return correlations(student, teacher, mask_BL, of="norm")["sl_spearman_norm"]


def test_both_correlations_against_scipy_with_ties_over_real_tokens() -> None:
    student, teacher = (norms(0) * 4).round(), (norms(1) * 4).round()  # few values: many ties
    student[3, :2], teacher[3, :2] = [1.0, 2.0], [5.0, 3.0]
    assert len(np.unique(student[0, :9])) < 9
    found = correlations(student, teacher, MASK_BL, of="norm")
    assert found.keys() == {"sl_pearson_norm", "sl_spearman_norm"}
    for name, reference in (("sl_pearson_norm", pearsonr), ("sl_spearman_norm", spearmanr)):
        expected = [
            reference(student[row, :length], teacher[row, :length]).statistic
            for row, length in enumerate(LENGTHS)
        ]
        assert found[name] == pytest.approx(expected, rel=1e-12), name
    assert found["sl_spearman_norm"][3] == pytest.approx(-1.0)
    assert found["sl_pearson_norm"][0] != pytest.approx(found["sl_spearman_norm"][0])


def test_padding_does_not_count() -> None:
    student, teacher = norms(0), norms(1)
    before = correlations(student, teacher, MASK_BL, of="norm")
    student[~MASK_BL] = 100.0
    teacher[~MASK_BL] = np.nan
    after = correlations(student, teacher, MASK_BL, of="norm")
    for name, values in before.items():
        assert np.array_equal(after[name], values)
        assert not np.array_equal(
            correlations(student, norms(1), np.ones_like(MASK_BL), of="norm")[name], values
        )


def test_ranks_see_the_order_alone_and_pearson_a_line() -> None:
    student = norms(0)
    assert spearman(student, 3 * np.exp(student)) == pytest.approx([1.0] * 4)
    assert spearman(student, -student) == pytest.approx([-1.0] * 4)
    assert pearson_per_row(student, 2 - 3 * student, MASK_BL) == pytest.approx([-1.0] * 4)
    assert pearson_per_row(student, np.exp(9 * student), MASK_BL)[2] < 0.99


@pytest.mark.parametrize("scale", [1e-200, 1e200])
def test_size_does_not_count(scale: float) -> None:
    """Squares of such numbers are 0 or infinite."""
    student, teacher = norms(0), norms(1)
    expected = pearson_per_row(student, teacher, MASK_BL)
    assert pearson_per_row(scale * student, teacher, MASK_BL) == pytest.approx(expected, rel=1e-9)


def test_rows_without_an_order_are_no_numbers() -> None:
    student, teacher = norms(0), norms(1)
    student[0] = 0.1
    teacher[1] = 0.0
    mask_BL = MASK_BL.copy()
    mask_BL[3, 1:] = False
    for found in (pearson_per_row(student, teacher, mask_BL), spearman(student, teacher, mask_BL)):
        assert np.isnan(found).tolist() == [True, True, False, True]
    mask_BL[2] = False
    assert np.isnan(spearman(student, teacher, mask_BL)).all()

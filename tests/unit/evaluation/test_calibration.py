from __future__ import annotations

import numpy as np
import pytest
from sklearn.calibration import calibration_curve

from distill_dist.evaluation.calibration import BINS, calibration_error


def two_classes(confidence: np.ndarray) -> np.ndarray:
    return np.stack([1 - confidence, confidence], axis=1)


def test_known_answers() -> None:
    """Four sure rows of which one is wrong: 1 − 3/4; and rows as often right as they are sure."""
    sure = two_classes(np.ones(4))
    assert calibration_error(sure, np.array([1, 1, 1, 0])).value == 0.25
    honest = two_classes(np.full(5, 0.8))
    assert calibration_error(honest, np.array([1, 1, 1, 1, 0])).value == pytest.approx(0.0, abs=1e-15)


def test_bins_do_not_make_up_for_each_other() -> None:
    """0.1 too sure in one bin and 0.1 too modest in another: 0.1, and not 0."""
    confidence = np.repeat([0.6, 0.9], 10)
    labels = np.concatenate([np.ones(5), np.zeros(5), np.ones(10)]).astype(int)
    assert calibration_error(two_classes(confidence), labels).value == pytest.approx(0.1)


def test_against_scikit_learns_curve() -> None:
    """Of the largest of three probabilities; scikit-learn gives mean confidence and accuracy by bin."""
    generator = np.random.default_rng(0)
    p = generator.dirichlet([1.0, 1.0, 1.0], size=500)
    labels = generator.integers(3, size=500)
    confidence, right = p.max(axis=1), p.argmax(axis=1) == labels
    accuracy, mean_confidence = calibration_curve(right, confidence, n_bins=BINS)
    counts = np.histogram(confidence, bins=np.linspace(0, 1, BINS + 1))[0]
    expected = (np.abs(accuracy - mean_confidence) * counts[counts > 0]).sum() / 500
    assert expected > 0.1
    assert calibration_error(p, labels).value == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("confidence", [0.5, 1.0, 1 / 3 + 1e-12])
def test_the_ends_of_the_range_have_a_bin(confidence: float) -> None:
    rest = 1 - confidence
    p = np.array([[confidence, rest / 2, rest / 2]])
    assert calibration_error(p, np.array([0])).value == pytest.approx(1 - confidence)

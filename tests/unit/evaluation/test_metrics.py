from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.distance import jensenshannon
from scipy.special import softmax
from sklearn.metrics import accuracy_score, f1_score, log_loss

from distill_dist.evaluation.metrics import label_loyalty, probability_loyalty, task_metrics


def logits(rows: int = 200, classes: int = 3, seed: int = 0) -> np.ndarray:
    return 2 * np.random.default_rng(seed).standard_normal((rows, classes))


@pytest.mark.parametrize("classes", [2, 3])
def test_task_metrics_against_scikit_learn(classes: int) -> None:
    z = logits(classes=classes)
    labels = np.random.default_rng(1).integers(classes, size=200)
    found = task_metrics(z, labels, with_f1=False)
    assert found == {
        "accuracy": pytest.approx(accuracy_score(labels, z.argmax(1))),
        "loss": pytest.approx(log_loss(labels, softmax(z, axis=1), labels=range(classes)), rel=1e-12),
    }


def test_f1_is_that_of_class_one() -> None:
    z, labels = logits(classes=2), np.random.default_rng(1).integers(2, size=200)
    labels[:60] = 0
    found = task_metrics(z, labels, with_f1=True)
    predicted = z.argmax(1)
    hits = int(((predicted == 1) & (labels == 1)).sum())
    by_hand = 2 * hits / (int((predicted == 1).sum()) + int((labels == 1).sum()))
    assert found["f1"] == pytest.approx(by_hand)
    assert abs(f1_score(labels, predicted, pos_label=0) - by_hand) > 0.05


def test_f1_without_any_hit_is_zero_without_a_warning() -> None:
    assert task_metrics(np.array([[1.0, 0.0]]), np.array([0]), with_f1=True)["f1"] == 0.0


def test_loss_of_a_sure_and_wrong_model_stays_finite() -> None:
    found = task_metrics(np.array([[1000.0, 0.0]], dtype=np.float32), np.array([1]), with_f1=False)
    assert found == {"accuracy": 0.0, "loss": 1000.0}


def test_label_loyalty_by_hand() -> None:
    student = np.array([[1.0, 0.0], [0.0, 1.0], [2.0, 1.0], [0.0, 3.0]])
    teacher = np.array([[9.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 3.0]])
    assert label_loyalty(student, teacher) == 0.5
    assert label_loyalty(student, student) == 1.0


def test_probability_loyalty_against_scipy() -> None:
    """scipy's function already is the root of the divergence: rooting it again is the classical mistake."""
    student, teacher = logits(), logits(seed=1)
    distance = jensenshannon(softmax(teacher, axis=1), softmax(student, axis=1), axis=1)
    found = probability_loyalty(student, teacher)
    assert found == pytest.approx(1 - distance.mean(), rel=1e-12)
    assert abs(found - (1 - np.sqrt(distance).mean())) > 0.05
    assert abs(found - (1 - (distance**2).mean())) > 0.05


def test_probability_loyalty_between_its_ends() -> None:
    z = logits()
    # √ of a divergence that rounding puts at 1e-16
    assert probability_loyalty(z, z) == pytest.approx(1.0, abs=1e-7)
    apart = probability_loyalty(np.array([[60.0, 0.0]]), np.array([[0.0, 60.0]]))
    assert apart == pytest.approx(1 - np.sqrt(np.log(2)), rel=1e-9)
    assert probability_loyalty(z, logits(seed=1)) == pytest.approx(probability_loyalty(logits(seed=1), z))

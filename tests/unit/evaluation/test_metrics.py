from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.distance import jensenshannon
from scipy.special import softmax
from sklearn.metrics import (
    accuracy_score,
    f1_score,
    log_loss,
    matthews_corrcoef,
    precision_recall_fscore_support,
)

from distill_dist.evaluation.calibration import calibration_error
from distill_dist.evaluation.metrics import (
    class_summed,
    loyalty_summed,
    probabilities,
    task_summed,
    values_of,
)


def task_metrics(z: np.ndarray, labels: np.ndarray, metric: str = "accuracy") -> dict[str, float]:
    return values_of(task_summed(z, labels, metric=metric))


def label_loyalty(student: np.ndarray, teacher: np.ndarray) -> float:
    return loyalty_summed(student, teacher)["ll"].value


def probability_loyalty(student: np.ndarray, teacher: np.ndarray) -> float:
    return loyalty_summed(student, teacher)["pl"].value


def logits(rows: int = 200, classes: int = 3, seed: int = 0) -> np.ndarray:
    return 2 * np.random.default_rng(seed).standard_normal((rows, classes))


@pytest.mark.parametrize("classes", [2, 3])
def test_task_metrics_against_scikit_learn(classes: int) -> None:
    z = logits(classes=classes)
    labels = np.random.default_rng(1).integers(classes, size=200)
    found = task_metrics(z, labels)
    assert found == {
        "accuracy": pytest.approx(accuracy_score(labels, z.argmax(1))),
        "loss": pytest.approx(log_loss(labels, softmax(z, axis=1), labels=range(classes)), rel=1e-12),
        "ece": calibration_error(softmax(z, axis=1), labels).value,
    }


def test_f1_is_that_of_class_one() -> None:
    z, labels = logits(classes=2), np.random.default_rng(1).integers(2, size=200)
    labels[:60] = 0
    found = task_metrics(z, labels, "f1")
    predicted = z.argmax(1)
    hits = int(((predicted == 1) & (labels == 1)).sum())
    by_hand = 2 * hits / (int((predicted == 1).sum()) + int((labels == 1).sum()))
    assert found["f1"] == pytest.approx(by_hand)
    assert abs(f1_score(labels, predicted, pos_label=0) - by_hand) > 0.05


def test_f1_without_any_hit_is_zero_without_a_warning() -> None:
    assert task_metrics(np.array([[1.0, 0.0]]), np.array([0]), "f1")["f1"] == 0.0


def test_loss_of_a_sure_and_wrong_model_stays_finite() -> None:
    found = task_metrics(np.array([[1000.0, 0.0]], dtype=np.float32), np.array([1]))
    assert found == {"accuracy": 0.0, "loss": 1000.0, "ece": 1.0}


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


@pytest.mark.parametrize("classes", [2, 3])
def test_matthews_against_scikit_learn(classes: int) -> None:
    z, labels = logits(classes=classes), np.random.default_rng(1).integers(classes, size=200)
    labels[:80] = z.argmax(1)[:80]
    found = task_metrics(z, labels, "matthews")
    assert found["matthews"] == pytest.approx(matthews_corrcoef(labels, z.argmax(1)), rel=1e-12)
    assert 0.1 < found["matthews"] < 0.9
    assert "f1" not in found


def test_matthews_by_hand() -> None:
    """tp 3, tn 1, fp 2, fn 1: (3·1 − 2·1) / √(5·4·3·2)."""
    labels = np.array([1, 1, 1, 0, 0, 0, 1])
    predicted = np.array([1, 1, 1, 0, 1, 1, 0])
    found = task_metrics(np.eye(2)[predicted], labels, "matthews")
    assert found["matthews"] == pytest.approx(1 / np.sqrt(120))
    one_class = task_metrics(np.eye(2)[np.ones(7, dtype=int)], labels, "matthews")
    assert one_class["matthews"] == 0.0


@pytest.mark.parametrize("classes", [2, 3])
def test_each_class_against_scikit_learn(classes: int) -> None:
    z, labels = logits(classes=classes), np.random.default_rng(1).integers(classes, size=200)
    labels[:60] = 0
    z[:, -1] -= 99.0  # a class that is never predicted: its precision is 0 by agreement
    names = ("a", "b", "c")[:classes]
    found = class_summed(z, labels, names)
    precision, recall, f1, _ = precision_recall_fscore_support(
        labels, z.argmax(1), labels=range(classes), zero_division=0.0
    )
    for number, name in enumerate(names):
        for measure, expected in (("precision", precision), ("recall", recall), ("f1", f1)):
            assert found[name, measure].value == pytest.approx(expected[number], rel=1e-12)
    assert found[names[-1], "precision"].value == 0.0 < found["a", "precision"].value


def test_two_halves_add_up_to_the_whole() -> None:
    """What every rank has of a metric is a sum over its rows: the sums of two ranks are those of one."""
    z, teacher = logits(), logits(seed=1)
    labels = np.random.default_rng(1).integers(3, size=200)

    def metrics(rows: slice) -> dict:
        classes = class_summed(z[rows], labels[rows], "abc")
        task = task_summed(z[rows], labels[rows], metric="matthews")
        return {**classes, **task, **loyalty_summed(z[rows], teacher[rows])}

    first, second, whole = (metrics(rows) for rows in (slice(70), slice(70, None), slice(None)))
    for name, metric in whole.items():
        together = first[name].columns_ND.sum(axis=0) + second[name].columns_ND.sum(axis=0)
        assert metric.of(together) == pytest.approx(metric.value, rel=1e-12), name
        assert first[name].value != metric.value, name


def test_probabilities_are_taken_in_double_precision() -> None:
    assert probabilities(np.array([[0.0, -80.0]], dtype=np.float32))[0, 1] == pytest.approx(np.exp(-80.0))

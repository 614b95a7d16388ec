"""Numbers over a whole split: task metrics and loyalty to the teacher (METHOD.md §5). numpy in, floats out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax, rel_entr, softmax

from distill_dist.evaluation.calibration import calibration_error
from distill_dist.evaluation.confusion import accuracy, confusion_columns, f1, matthews, of_class
from distill_dist.evaluation.summed import Floats, Summed, mean_of

Integers = NDArray[np.integer]


def probabilities(logits_NC: Floats) -> Floats:
    """softmax of every row, in float64."""
    found: Floats = softmax(logits_NC.astype(np.float64), axis=1)
    return found


def task_summed(logits_NC: Floats, labels_N: Integers, *, metric: str) -> dict[str, Summed]:
    """`accuracy`, `loss` (mean cross-entropy, nats), `ece`, and the task's own ``metric``: `f1` of class 1 or
    `matthews`."""
    logits_NC = logits_NC.astype(np.float64)
    columns_ND = confusion_columns(logits_NC.argmax(axis=1), labels_N, logits_NC.shape[1])
    surprise_N = -log_softmax(logits_NC, axis=1)[np.arange(len(labels_N)), labels_N]
    found = {
        "accuracy": Summed(columns_ND, accuracy),
        "loss": mean_of(surprise_N),
        "ece": calibration_error(probabilities(logits_NC), labels_N),
    }
    if metric == "f1":
        found["f1"] = Summed(columns_ND, partial(f1, number=1))
    if metric == "matthews":
        found["matthews"] = Summed(columns_ND, matthews)
    return found


def class_summed(
    logits_NC: Floats, labels_N: Integers, names: Sequence[str]
) -> dict[tuple[str, str], Summed]:
    """(class, `precision` | `recall` | `f1`) -> its number; a class stands for all others together."""
    columns_ND = confusion_columns(logits_NC.argmax(axis=1), labels_N, len(names))
    return {
        (name, measure): summed
        for number, name in enumerate(names)
        for measure, summed in of_class(columns_ND, number).items()
    }


def loyalty_summed(student_NC: Floats, teacher_NC: Floats) -> dict[str, Summed]:
    """`ll` and `pl`: does the student say what its teacher says?"""
    same_N = (student_NC.argmax(axis=1) == teacher_NC.argmax(axis=1)).astype(np.float64)
    return {"ll": mean_of(same_N), "pl": mean_of(closeness(student_NC, teacher_NC))}


def closeness(student_NC: Floats, teacher_NC: Floats) -> Floats:
    """1 − √JSD(p_T ‖ p_S) of every row [N], natural logarithm (Xu et al. 2021)."""
    p, q = probabilities(teacher_NC), probabilities(student_NC)
    middle = (p + q) / 2
    divergence_N = (rel_entr(p, middle).sum(axis=1) + rel_entr(q, middle).sum(axis=1)) / 2
    found: Floats = 1.0 - np.sqrt(np.maximum(divergence_N, 0.0))
    return found


def values_of(metrics: Mapping[str, Summed]) -> dict[str, float]:
    """The metrics of the split as it is."""
    return {name: summed.value for name, summed in metrics.items()}

"""Numbers over a whole split: task metrics and loyalty to the teacher (METHOD.md §5). numpy in, floats out."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax, rel_entr, softmax

Floats = NDArray[np.floating]
Integers = NDArray[np.integer]


def task_metrics(logits_NC: Floats, labels_N: Integers, *, with_f1: bool) -> dict[str, float]:
    """`accuracy`, `loss` (mean cross-entropy, nats) and, where the task uses it, `f1` of class 1."""
    logits_NC = logits_NC.astype(np.float64)
    predicted_N = logits_NC.argmax(axis=1)
    found = {
        "accuracy": float((predicted_N == labels_N).mean()),
        "loss": float(-log_softmax(logits_NC, axis=1)[np.arange(len(labels_N)), labels_N].mean()),
    }
    if with_f1:
        from sklearn.metrics import f1_score  # takes a second, which most tasks need not wait for

        found["f1"] = float(f1_score(labels_N, predicted_N, pos_label=1, zero_division=0.0))
    return found


def label_loyalty(student_NC: Floats, teacher_NC: Floats) -> float:
    """LL: share of samples on which both predict the same class."""
    return float((student_NC.argmax(axis=1) == teacher_NC.argmax(axis=1)).mean())


def probability_loyalty(student_NC: Floats, teacher_NC: Floats) -> float:
    """PL: mean over samples of 1 − √JSD(p_T ‖ p_S), natural logarithm (Xu et al. 2021)."""
    p = softmax(teacher_NC.astype(np.float64), axis=1)
    q = softmax(student_NC.astype(np.float64), axis=1)
    middle = (p + q) / 2
    divergence = (rel_entr(p, middle).sum(axis=1) + rel_entr(q, middle).sum(axis=1)) / 2
    return float(1.0 - np.sqrt(np.maximum(divergence, 0.0)).mean())

"""Metrics of a confusion matrix, whose entries are sums over rows: flat [..., C·C], row of the label first.

Definitions as scikit-learn's, with 0 where nothing is divided by nothing; own code, because every one is also taken
of thousands of resampled matrices at once.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import isqrt

import numpy as np
from numpy.typing import NDArray

from distill_dist.evaluation.summed import Floats, Summed, ratio

Integers = NDArray[np.integer]

MEASURES = ("precision", "recall", "f1")


def confusion_columns(predicted_N: Integers, labels_N: Integers, num_classes: int) -> Floats:
    """float64 [N, C·C]: 1 at (label, prediction) of every row."""
    cell_N = labels_N.astype(np.int64) * num_classes + predicted_N
    columns: Floats = np.zeros((len(cell_N), num_classes**2))
    columns[np.arange(len(cell_N)), cell_N] = 1.0
    return columns


def _square(flat: Floats) -> Floats:
    classes = isqrt(flat.shape[-1])
    return flat.reshape(*flat.shape[:-1], classes, classes)


def accuracy(flat: Floats) -> Floats:
    """Share of rows whose prediction is the label."""
    return ratio(_hits(flat).sum(axis=-1), flat.sum(axis=-1), empty=np.nan)


def precision(flat: Floats, number: int) -> Floats:
    """Of the rows for which class ``number`` was predicted, the share that is of it."""
    return ratio(_hits(flat)[..., number], _square(flat)[..., number].sum(axis=-1), empty=0.0)


def recall(flat: Floats, number: int) -> Floats:
    """Of the rows of class ``number``, the share for which it was predicted."""
    return ratio(_hits(flat)[..., number], _square(flat)[..., number, :].sum(axis=-1), empty=0.0)


def f1(flat: Floats, number: int) -> Floats:
    """Harmonic mean of precision and recall of class ``number``."""
    matrix = _square(flat)
    marginals = matrix[..., number].sum(axis=-1) + matrix[..., number, :].sum(axis=-1)
    return ratio(2 * _hits(flat)[..., number], marginals, empty=0.0)


def matthews(flat: Floats) -> Floats:
    """Matthews correlation, for any number of classes (Gorodkin 2004); 0 where one side has one class only."""
    matrix, hits = _square(flat), _hits(flat).sum(axis=-1)
    true, predicted, rows = matrix.sum(axis=-1), matrix.sum(axis=-2), flat.sum(axis=-1)
    together = hits * rows - (true * predicted).sum(axis=-1)
    apart = (rows**2 - (true**2).sum(axis=-1)) * (rows**2 - (predicted**2).sum(axis=-1))
    return ratio(together, np.sqrt(np.maximum(apart, 0.0)), empty=0.0)


def _hits(flat: Floats) -> Floats:
    return np.diagonal(_square(flat), axis1=-2, axis2=-1)


_OF_CLASS: dict[str, Callable[..., Floats]] = {"precision": precision, "recall": recall, "f1": f1}


def of_class(columns_ND: Floats, number: int) -> dict[str, Summed]:
    """``MEASURES`` of class ``number``."""
    return {name: Summed(columns_ND, partial(_OF_CLASS[name], number=number)) for name in MEASURES}

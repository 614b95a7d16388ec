"""Saliency loyalty: do both models look at the same tokens? (METHOD.md §5)

A correlation does not see the scale p_c(1 − p_c) of a row, so gradients of the margin serve.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from distill_dist.evaluation.summed import Floats

HEADLINE = "sl_spearman_norm"
Mask = NDArray[np.bool_]


def correlations(student_BL: Floats, teacher_BL: Floats, mask_BL: Mask, *, of: str) -> dict[str, Floats]:
    """`sl_pearson_{of}` and `sl_spearman_{of}` of every row [B] over its real tokens.

    NaN where a row has no correlation: fewer than two tokens, or a model to which all count the same.
    """
    from scipy.stats import rankdata  # takes half a second, and a run needs it at its end only

    ranks = [
        rankdata(np.where(mask_BL, each, np.nan), axis=1, nan_policy="omit")
        for each in (student_BL, teacher_BL)
    ]
    return {
        f"sl_pearson_{of}": pearson_per_row(student_BL, teacher_BL, mask_BL),
        f"sl_spearman_{of}": pearson_per_row(ranks[0], ranks[1], mask_BL),
    }


def pearson_per_row(first_BL: Floats, second_BL: Floats, mask_BL: Mask) -> Floats:
    """Pearson correlation [B] over the tokens of ``mask_BL``; NaN as above."""
    is_flat_B = _is_flat(first_BL, mask_BL) | _is_flat(second_BL, mask_BL)
    first_BL, second_BL = _centred(first_BL, mask_BL), _centred(second_BL, mask_BL)
    scale_B = np.sqrt((first_BL**2).sum(axis=1)) * np.sqrt((second_BL**2).sum(axis=1))
    together_B = (first_BL * second_BL).sum(axis=1)
    found_B = np.clip(together_B / np.where(is_flat_B, 1.0, scale_B), -1.0, 1.0)  # rounding
    return np.where(is_flat_B, np.nan, found_B)


def _is_flat(values_BL: Floats, mask_BL: Mask) -> NDArray[np.bool_]:
    highest_B = np.where(mask_BL, values_BL, -np.inf).max(axis=1)
    lowest_B = np.where(mask_BL, values_BL, np.inf).min(axis=1)
    flat_B: NDArray[np.bool_] = highest_B <= lowest_B  # without any token it is −∞
    return flat_B


def _centred(values_BL: Floats, mask_BL: Mask) -> Floats:
    """float64 less the row's mean over its tokens, over its largest magnitude; 0 elsewhere."""
    values_BL = np.where(mask_BL, values_BL, 0.0).astype(np.float64)
    tokens_B1 = np.maximum(mask_BL.sum(axis=1, keepdims=True), 1)
    centred_BL = np.where(mask_BL, values_BL - values_BL.sum(axis=1, keepdims=True) / tokens_B1, 0.0)
    largest_B1 = np.abs(centred_BL).max(axis=1, keepdims=True)
    found: Floats = centred_BL / np.where(largest_B1 == 0, 1.0, largest_B1)  # squares of 1e-200 are 0
    return found

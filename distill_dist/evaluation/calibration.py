"""Is a model as often right as it is sure? (METHOD.md §5)"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from distill_dist.evaluation.summed import Floats, Summed, ratio

BINS = 15  # equal widths, as in Guo et al. 2017


def calibration_error(probabilities_NC: Floats, labels_N: NDArray[np.integer]) -> Summed:
    """ECE, 0 to 1: Σ over bins of |Σ of the bin's rows (confidence − right)| / N.

    A row's confidence is its largest probability; bin m of M holds those in ((m − 1)/M, m/M]. The same as the mean
    over rows of |mean confidence − accuracy| of their bin. Of few rows it is too large: noise in a bin never cancels
    that of another, and a resampled split has more of it than the split.
    """
    confidence_N = probabilities_NC.max(axis=1)
    surplus_N = confidence_N - (probabilities_NC.argmax(axis=1) == labels_N)
    bin_N = np.clip(np.ceil(confidence_N * BINS).astype(np.int64) - 1, 0, BINS - 1)
    columns_ND = np.zeros((len(bin_N), BINS + 1))
    columns_ND[np.arange(len(bin_N)), bin_N] = surplus_N
    columns_ND[:, BINS] = 1.0
    return Summed(columns_ND, _error)


def _error(sums_D: Floats) -> Floats:
    return ratio(np.abs(sums_D[..., :BINS]).sum(axis=-1), sums_D[..., BINS], empty=np.nan)

"""Saliency loyalty: do both models look at the same tokens? (METHOD.md §5)"""

from __future__ import annotations

import numpy as np
from torch import Tensor


def spearman_per_row(student_BL: Tensor, teacher_BL: Tensor, mask_BL: Tensor) -> list[float]:
    """Spearman correlation of ‖g_t‖ over the real tokens of every row; rows without a rank order are left out.

    A correlation does not see the scale p_c(1 − p_c) of a row, so norms of the margin's gradient serve.
    """
    from scipy.stats import spearmanr  # takes half a second, and a run needs it at its end only

    found = []
    for student_L, teacher_L, mask_L in zip(student_BL, teacher_BL, mask_BL.bool(), strict=True):
        first, second = student_L[mask_L].cpu().numpy(), teacher_L[mask_L].cpu().numpy()
        if len(first) < 2 or np.ptp(first) == 0 or np.ptp(second) == 0:
            continue
        found.append(float(spearmanr(first, second).statistic))
    return found

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import pearsonr, rankdata

from distill_dist.evaluation.saliency import spearman_per_row

LENGTHS = (9, 4, 12, 2)
MASK_BL = (torch.arange(12) < torch.tensor(LENGTHS)[:, None]).long()


def norms(seed: int) -> torch.Tensor:
    return torch.rand(4, 12, generator=torch.Generator().manual_seed(seed))


def test_correlation_of_ranks_with_ties_over_real_tokens() -> None:
    student, teacher = (norms(0) * 4).round(), (norms(1) * 4).round()  # few values: many ties
    student[3, :2], teacher[3, :2] = torch.tensor([1.0, 2.0]), torch.tensor([5.0, 3.0])
    found = spearman_per_row(student, teacher, MASK_BL)
    expected = [
        pearsonr(rankdata(student[row, :length]), rankdata(teacher[row, :length])).statistic
        for row, length in enumerate(LENGTHS)
    ]
    assert len(np.unique(student[0, :9])) < 9
    assert found == pytest.approx(expected, rel=1e-12)
    assert found[3] == pytest.approx(-1.0)


def test_padding_does_not_count() -> None:
    student, teacher = norms(0), norms(1)
    before = spearman_per_row(student, teacher, MASK_BL)
    student[MASK_BL == 0] = 100.0
    assert spearman_per_row(student, teacher, MASK_BL) == before
    assert spearman_per_row(student, teacher, torch.ones_like(MASK_BL)) != before


def test_only_the_order_counts() -> None:
    student = norms(0)
    assert spearman_per_row(student, 3 * student.exp(), MASK_BL) == pytest.approx([1.0] * 4)
    assert spearman_per_row(student, -student, MASK_BL) == pytest.approx([-1.0] * 4)


def test_rows_without_an_order_are_left_out() -> None:
    student, teacher = norms(0), norms(1)
    student[0] = 1.0
    teacher[1] = 0.0
    mask_BL = MASK_BL.clone()
    mask_BL[3, 1:] = 0
    assert len(spearman_per_row(student, teacher, MASK_BL)) == 2
    assert len(spearman_per_row(student, teacher, mask_BL)) == 1

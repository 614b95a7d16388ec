"""Distances of directions: gradients at a position, [CLS] states (METHOD.md §1). In fp32 or better."""

from __future__ import annotations

import torch
from torch import Tensor

from distill_dist.records import at_least_fp32


def unit_rows(rows: Tensor) -> tuple[Tensor, Tensor]:
    """(rows / ‖rows‖₂ over the last axis, norms); a zero row stays zero and has a zero derivative.

    The norm of a zero row has no derivative: it is replaced before the root, or one padding position would
    turn the whole gradient into NaN.
    """
    rows = at_least_fp32(rows)
    squares = rows.square().sum(dim=-1)
    is_zero = squares == 0
    norms = torch.where(is_zero, torch.ones_like(squares), squares).sqrt()
    return rows / norms.unsqueeze(-1), norms.masked_fill(is_zero, 0.0)


def direction_distance(student: Tensor, teacher_unit: Tensor) -> tuple[Tensor, Tensor]:
    """(‖ŝ − t̂‖² over the last axis, whether either row is zero) for raw ``student`` and unit ``teacher_unit`` rows.

    Equal to 2(1 − cos). Where a row is zero there is no direction: the distance is 0 there and the flag is
    set; on a real token that is an error which the trainer counts.
    """
    student_unit, norms = unit_rows(student)
    no_direction = (norms == 0) | (teacher_unit == 0).all(dim=-1)
    distance = (student_unit - at_least_fp32(teacher_unit)).square().sum(dim=-1)
    return distance.masked_fill(no_direction, 0.0), no_direction


def patience_B(student_BKH: Tensor, teacher_unit_BKH: Tensor) -> Tensor:
    """Mean squared difference of the L2-normalised [CLS] states over matched layers and width, per sequence [B]."""
    student_unit, _ = unit_rows(student_BKH)
    return (student_unit - at_least_fp32(teacher_unit_BKH)).square().mean(dim=(1, 2))

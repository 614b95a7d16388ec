from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from distill_dist.objectives.alignment import direction_distance, patience_B, unit_rows


def rows(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_unit_rows_by_hand() -> None:
    unit, norms = unit_rows(torch.tensor([[3.0, 4.0], [0.0, -2.0]]))
    assert unit.tolist() == [[pytest.approx(0.6), pytest.approx(0.8)], [0.0, -1.0]]
    assert norms.tolist() == [5.0, 2.0]


def test_zero_row_keeps_value_and_gradient_finite() -> None:
    """The norm's derivative at 0 is 0/0: unguarded, one padding position makes every gradient NaN."""
    naive = torch.zeros(1, 4, requires_grad=True)
    (bad,) = torch.autograd.grad((naive / naive.square().sum(-1, keepdim=True).sqrt()).sum(), naive)
    assert bad.isnan().all()

    values = rows(3, 4)
    values[1] = 0.0
    values.requires_grad_(True)
    unit, norms = unit_rows(values)
    assert unit[1].tolist() == [0.0] * 4
    assert norms[1] == 0.0
    (gradient,) = torch.autograd.grad(unit.square().sum() + (unit * rows(3, 4, seed=1)).sum(), values)
    assert gradient.isfinite().all()
    assert (gradient[0] != 0).all()


def test_zero_rows_are_flagged_and_weigh_nothing() -> None:
    student, teacher = rows(4, 5), unit_rows(rows(4, 5, seed=1))[0]
    student[1] = 0.0
    teacher[2] = 0.0
    student.requires_grad_(True)
    distance, flag = direction_distance(student, teacher)
    assert flag.tolist() == [False, True, True, False]
    assert distance[1] == 0.0
    assert distance[2] == 0.0
    (gradient,) = torch.autograd.grad(distance.sum(), student)
    assert (gradient[[1, 2]] == 0).all()
    assert (gradient[[0, 3]] != 0).all()


def test_distance_is_twice_one_minus_cosine() -> None:
    student, teacher = rows(50, 7), rows(50, 7, seed=1)
    distance, flag = direction_distance(student, unit_rows(teacher)[0])
    expected = [
        2 - 2 * sum(a * b for a, b in zip(s, t, strict=True)) / math.hypot(*s) / math.hypot(*t)
        for s, t in zip(student.tolist(), teacher.tolist(), strict=True)
    ]
    assert not flag.any()
    assert distance.tolist() == pytest.approx(expected, abs=1e-14)  # ~30 operations on values below 4


@pytest.mark.parametrize(("factor", "expected"), [(3.0, 0.0), (-1e-3, 4.0)])
def test_only_the_direction_counts(factor: float, expected: float) -> None:
    teacher = rows(6, 7)
    distance, _ = direction_distance(factor * teacher, unit_rows(teacher)[0])
    assert distance.tolist() == pytest.approx([expected] * 6, abs=1e-14)


def test_gradient_is_across_the_row() -> None:
    """Lengthening a row does not change its direction: ⟨g, ∂d/∂g⟩ = 0."""
    student = rows(6, 7).requires_grad_(True)
    distance, _ = direction_distance(student, unit_rows(rows(6, 7, seed=1))[0])
    (gradient,) = torch.autograd.grad(distance.sum(), student)
    assert gradient.norm(dim=-1).min() > 1e-2
    assert (gradient * student).sum(-1).abs().max() < 1e-13


def test_patience_by_hand() -> None:
    student, teacher = rows(2, 3, 4), rows(2, 3, 4, seed=1)
    found = patience_B(student, unit_rows(teacher)[0])
    for row in range(2):
        total = 0.0
        for layer in range(3):
            s, t = student[row, layer].tolist(), teacher[row, layer].tolist()
            total += sum((a / math.hypot(*s) - b / math.hypot(*t)) ** 2 for a, b in zip(s, t, strict=True))
        assert found[row].item() == pytest.approx(total / 12, rel=1e-13)


def test_gradcheck() -> None:
    teacher_KH = unit_rows(rows(3, 2, 4, seed=1))[0]
    student = rows(3, 2, 4).requires_grad_(True)
    assert torch.autograd.gradcheck(lambda g: unit_rows(g)[0], (student,))
    assert torch.autograd.gradcheck(lambda g: direction_distance(g, teacher_KH)[0], (student,))
    assert torch.autograd.gradcheck(lambda h: patience_B(h, teacher_KH), (student,))


def test_half_precision_rows_are_compared_in_fp32() -> None:
    """bf16 keeps 8 bits: distances near 0 would be 2⁻⁸ off."""
    student = rows(20, 64).to(torch.bfloat16)
    unit, _ = unit_rows(student)
    assert unit.dtype == torch.float32
    assert (unit.norm(dim=-1) - 1).abs().max() < 1e-6
    distance, _ = direction_distance(student, unit)
    assert distance.max() < 1e-12

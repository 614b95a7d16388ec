from __future__ import annotations

import math

import pytest
import torch

from distill_dist.objectives.divergences import cross_entropy_B, distillation_B


def logits(rows: int = 4, classes: int = 3, seed: int = 0) -> torch.Tensor:
    return 3 * torch.randn(rows, classes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def kl_by_hand(student: list[float], teacher: list[float], tau: float) -> float:
    """τ²·Σ p log(p/q) in plain Python."""
    p = [math.exp(z / tau) / sum(math.exp(y / tau) for y in teacher) for z in teacher]
    q = [math.exp(z / tau) / sum(math.exp(y / tau) for y in student) for z in student]
    return tau**2 * sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def test_cross_entropy_by_hand() -> None:
    z, labels = logits(), torch.tensor([0, 2, 1, 1])
    expected = [
        -math.log(math.exp(row[label]) / sum(map(math.exp, row)))
        for row, label in zip(z.tolist(), labels.tolist(), strict=True)
    ]
    # ~10 float64 operations a row
    assert cross_entropy_B(z, labels).tolist() == pytest.approx(expected, rel=1e-13)


@pytest.mark.parametrize("tau", [1.0, 2.5, 5.0])
@pytest.mark.parametrize("classes", [2, 3])
def test_distillation_by_hand(tau: float, classes: int) -> None:
    student, teacher = logits(classes=classes), logits(classes=classes, seed=1)
    expected = [kl_by_hand(s, t, tau) for s, t in zip(student.tolist(), teacher.tolist(), strict=True)]
    found = distillation_B(student, teacher, temperature=tau, per_class=False)
    # the KL is a difference of terms up to 1e2 times larger: 1e-13 × 1e2
    assert found.tolist() == pytest.approx(expected, rel=1e-11)
    per_class = distillation_B(student, teacher, temperature=tau, per_class=True)
    assert per_class.tolist() == pytest.approx([value / classes for value in expected], rel=1e-11)


def test_direction_of_the_divergence() -> None:
    """KL(T‖S), not KL(S‖T); zero where both agree, whatever is added to all logits."""
    student, teacher = logits(), logits(seed=1)
    forward = distillation_B(student, teacher, temperature=2.0, per_class=False)
    backward = distillation_B(teacher, student, temperature=2.0, per_class=False)
    assert (forward - backward).abs().max() > 0.1
    same = distillation_B(student + 7.0, student, temperature=2.0, per_class=False)
    assert same.abs().max() < 1e-13  # the shift costs a rounding of 10 × 1e-16


def test_temperature_keeps_the_size_of_the_gradient() -> None:
    """τ² makes the gradient's limit for τ → ∞ independent of τ: (z_S − z_T, centred)/C (Hinton 2015, eq. 4)."""
    student, teacher = logits().requires_grad_(True), logits(seed=1)
    (found,) = torch.autograd.grad(
        distillation_B(student, teacher, temperature=1e3, per_class=False).sum(), student
    )
    difference = student.detach() - teacher
    expected = (difference - difference.mean(dim=1, keepdim=True)) / 3
    # second-order terms are of size |z|²/τ ≈ 1e1/1e3 relative
    assert torch.allclose(found, expected, rtol=0.05, atol=0.02)
    assert expected.abs().max() > 0.5


def test_gradcheck() -> None:
    student, teacher, labels = logits().requires_grad_(True), logits(seed=1), torch.tensor([0, 2, 1, 1])
    assert torch.autograd.gradcheck(lambda z: cross_entropy_B(z, labels), (student,))
    assert torch.autograd.gradcheck(
        lambda z: distillation_B(z, teacher, temperature=2.0, per_class=True), (student,)
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_logits_are_summed_in_fp32(dtype: torch.dtype) -> None:
    student, teacher = logits().to(dtype), logits(seed=1).to(dtype)
    found = distillation_B(student, teacher, temperature=5.0, per_class=False)
    assert found.dtype == torch.float32
    exact = distillation_B(student.double(), teacher.double(), temperature=5.0, per_class=False)
    # τ² times two roundings of log-probabilities of a few: 25 × 1e-6; bf16 itself would be off by 25 × 2⁻⁸
    assert torch.allclose(found.double(), exact, rtol=0, atol=2.5e-5)
    assert cross_entropy_B(student, torch.tensor([0, 2, 1, 1])).dtype == torch.float32

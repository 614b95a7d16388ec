from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from distill_dist.objectives.signal import margin_B, own_class_B


def toy(margin: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """(x [4, 6], logits [4, 3]): a small smooth network whose class 0 leads by about ``margin``."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4, 6, generator=generator, dtype=torch.float64).to(dtype).requires_grad_(True)
    weight = torch.randn(6, 3, generator=generator, dtype=torch.float64).to(dtype)
    return x, torch.tanh(x) @ weight + torch.tensor([margin, 0.0, 0.0], dtype=dtype)


def directions(gradient: Tensor) -> Tensor:
    gradient = gradient.double()
    return gradient / gradient.norm(dim=-1, keepdim=True)


def by_margin(margin: float, dtype: torch.dtype) -> Tensor:
    x, logits_BC = toy(margin, dtype)
    return torch.autograd.grad(margin_B(logits_BC, own_class_B(logits_BC)).sum(), x)[0]


def by_probability(margin: float, dtype: torch.dtype) -> Tensor:
    x, logits_BC = toy(margin, dtype)
    return torch.autograd.grad(logits_BC.softmax(-1).max(-1).values.sum(), x)[0]


def test_margin_by_hand() -> None:
    logits_BC = torch.tensor([[1.0, 2.0, 4.0], [3.0, 0.0, -1.0]], dtype=torch.float64)
    found = margin_B(logits_BC, torch.tensor([1, 0]))
    expected = [2 - math.log(math.exp(1) + math.exp(4)), 3 - math.log(1 + math.exp(-1))]
    assert found.tolist() == pytest.approx(expected, rel=1e-14)
    assert own_class_B(logits_BC).tolist() == [2, 0]


def test_sigmoid_of_the_margin_is_the_probability() -> None:
    logits_BC = 3 * torch.randn(20, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for c in range(4):
        found = margin_B(logits_BC, torch.full((20,), c)).sigmoid()
        assert torch.allclose(found, logits_BC.softmax(-1)[:, c], rtol=1e-13, atol=0)


def test_two_classes_give_the_difference() -> None:
    logits_BC = torch.tensor([[0.5, -1.5], [2.0, 7.0]])
    assert margin_B(logits_BC, torch.tensor([0, 1])).tolist() == [2.0, 5.0]


@pytest.mark.parametrize("margin", [0.0, 3.0])
def test_both_forms_have_one_direction(margin: float) -> None:
    """∇p = p(1 − p)·∇m: other lengths, the same direction."""
    first, second = by_margin(margin, torch.float64), by_probability(margin, torch.float64)
    assert (first.norm(dim=-1) / second.norm(dim=-1) > 2).all()
    assert torch.allclose(directions(first), directions(second), rtol=0, atol=1e-12)
    p = toy(margin, torch.float64)[1].softmax(-1).max(-1, keepdim=True).values
    assert torch.allclose(second, p * (1 - p) * first, rtol=1e-11, atol=0)


def test_only_the_margin_survives_saturation_in_fp32() -> None:
    exact = directions(by_margin(30.0, torch.float64))
    probability = by_probability(30.0, torch.float32)
    wrong = (torch.nan_to_num(directions(probability)) - exact).norm(dim=-1)
    assert wrong.min() > 0.1
    found = directions(by_margin(30.0, torch.float32))
    assert (found - exact).norm(dim=-1).max() < 1e-5  # ~20 fp32 operations


def test_half_precision_logits() -> None:
    logits_BC = torch.tensor([[1.0, 2.0, 4.0]], dtype=torch.bfloat16)
    assert margin_B(logits_BC, own_class_B(logits_BC)).dtype == torch.float32


def test_twice_differentiable() -> None:
    logits_BC = torch.randn(3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    logits_BC.requires_grad_(True)
    classes_B = torch.tensor([0, 3, 1])
    assert torch.autograd.gradcheck(lambda z: margin_B(z, classes_B), (logits_BC,))
    assert torch.autograd.gradgradcheck(lambda z: margin_B(z, classes_B), (logits_BC,))

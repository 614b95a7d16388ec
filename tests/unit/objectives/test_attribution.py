"""Attribution against its formula in plain Python, and what must not change it."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from distill_dist.objectives.alignment import unit_rows
from distill_dist.objectives.attribution import attribution_BLC, attribution_distance_B
from distill_dist.objectives.signal import margins_BV

MASK_BL = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 0]])


def rows(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def attribution_by_hand(
    gradients_LVH: list, embedding_LH: list, mask_L: list[int], top_k: int
) -> list[list[float]]:
    """METHOD.md §6 for one sequence, [L][V]: sort, cut, root, divide."""
    views = len(gradients_LVH[0])
    saliency_LV = []
    for gradients_VH, embedding_H, real in zip(gradients_LVH, embedding_LH, mask_L, strict=True):
        saliency_V = []
        for gradient_H in gradients_VH:
            products = sorted(
                (abs(g * e) for g, e in zip(gradient_H, embedding_H, strict=True)), reverse=True
            )
            kept = products[:top_k] if top_k else products
            saliency_V.append(math.sqrt(sum(value**2 for value in kept)) if real else 0.0)
        saliency_LV.append(saliency_V)
    norms = [math.sqrt(sum(saliency_V[view] ** 2 for saliency_V in saliency_LV)) for view in range(views)]
    return [[value / norm for value, norm in zip(row, norms, strict=True)] for row in saliency_LV]


@pytest.mark.parametrize("views", [1, 3])
@pytest.mark.parametrize("top_k", [0, 1, 3, 5, 6])
def test_attribution_by_hand(views: int, top_k: int) -> None:
    gradients, embedding = rows(3, 4, views, 6), rows(3, 4, 6, seed=1)
    found = attribution_BLC(gradients, embedding, MASK_BL, top_k=top_k)
    assert found.shape == (3, 4, views)
    for row in range(3):
        expected = attribution_by_hand(
            gradients[row].tolist(), embedding[row].tolist(), MASK_BL[row].tolist(), top_k
        )
        for token in range(4):
            # ~20 float64 operations on positive numbers
            assert found[row, token].tolist() == pytest.approx(expected[token], rel=1e-13, abs=0)


def test_top_k_is_a_choice_of_its_own() -> None:
    """0 and the whole width are the same thing, everything between is another."""
    gradients, embedding = rows(3, 4, 2, 6), rows(3, 4, 6, seed=1)
    found = [attribution_BLC(gradients, embedding, MASK_BL, top_k=top_k) for top_k in (0, 1, 3, 6, 100)]
    assert (found[0] - found[1]).abs().max() > 1e-2
    assert (found[0] - found[2]).abs().max() > 1e-2
    assert torch.equal(found[0], found[3])
    assert torch.equal(found[0], found[4])


def test_ties_do_not_show_in_the_value() -> None:
    """Of equal magnitudes any may be kept: the same norm whatever their order and sign; only the kept ones move."""
    gradients = torch.tensor([[[[2.0, -2.0, 2.0, 1.0]], [[3.0, 0.0, 0.0, 0.0]]]], dtype=torch.float64)
    embedding, mask = torch.ones(1, 2, 4, dtype=torch.float64), torch.ones(1, 2)
    saliency = [math.sqrt(8.0), 3.0]
    for order in ([0, 1, 2, 3], [3, 2, 1, 0], [1, 3, 0, 2]):
        leaf = gradients[..., order].requires_grad_(True)
        found = attribution_BLC(leaf, embedding, mask, top_k=2)
        assert found[0, :, 0].tolist() == pytest.approx([s / math.sqrt(17.0) for s in saliency], rel=1e-14)
        (derivative,) = torch.autograd.grad(found[0, 0, 0], leaf)
        assert (derivative[0, 0, 0] != 0).sum() == 2
        assert (derivative[0, 0, 0] != 0)[leaf[0, 0, 0].abs() < 2].sum() == 0


@pytest.mark.parametrize("top_k", [0, 2])
def test_padding_is_nothing(top_k: int) -> None:
    """Whatever stands on padding: attribution 0, derivative 0, and the real tokens as without it."""
    gradients, embedding = rows(1, 4, 2, 6).requires_grad_(True), rows(1, 4, 6, seed=1).requires_grad_(True)
    mask = torch.tensor([[1, 1, 1, 0]])
    found = attribution_BLC(gradients, embedding, mask, top_k=top_k)
    everything = attribution_BLC(gradients, embedding, torch.ones_like(mask), top_k=top_k)
    assert (everything[:, :3] - found[:, :3]).abs().max() > 1e-2
    alone = attribution_BLC(gradients[:, :3], embedding[:, :3], mask[:, :3], top_k=top_k)
    assert (found[:, 3] == 0).all()
    assert torch.allclose(found[:, :3], alone, rtol=1e-14, atol=0)
    for derivative in torch.autograd.grad((found * rows(1, 4, 2, seed=2)).sum(), (gradients, embedding)):
        assert (derivative[0, 3] == 0).all()
        assert (derivative[0, :3] != 0).flatten(1).any(dim=1).all()


def test_the_scale_of_a_sequence_cancels_the_scale_of_a_token_does_not() -> None:
    gradients, embedding = rows(3, 4, 2, 6), rows(3, 4, 6, seed=1)
    found = attribution_BLC(gradients, embedding, MASK_BL, top_k=3)
    per_token = rows(3, 4, 1, 1, seed=2).exp()
    per_sequence = rows(3, 1, 2, 1, seed=2).exp()
    moved = attribution_BLC(gradients * per_token, embedding, MASK_BL, top_k=3)
    same = attribution_BLC(gradients * per_sequence, embedding, MASK_BL, top_k=3)
    assert (moved - found).abs().max() > 1e-2
    assert torch.allclose(same, found, rtol=1e-13, atol=0)


def toy_logits(embedding_BLH: Tensor, lead: float) -> Tensor:
    """A smooth network [B, 3] over three tokens, whose class 0 leads by about ``lead``."""
    weight = rows(4, 3, 3, seed=5).to(embedding_BLH.dtype)
    logits_BC = torch.einsum("blh,hlc->bc", embedding_BLH.tanh(), weight)
    return logits_BC + torch.tensor([lead, 0.0, 0.0], dtype=embedding_BLH.dtype)


def toy_attribution(by: str, lead: float, dtype: torch.dtype) -> Tensor:
    embedding = rows(4, 3, 4, seed=6).to(dtype).requires_grad_(True)
    logits_BC = toy_logits(embedding, lead)
    classes_BV = torch.arange(3).expand(4, 3)
    signals_BV = margins_BV(logits_BC, classes_BV) if by == "margin" else logits_BC.softmax(dim=-1)
    views = [torch.autograd.grad(signal, embedding, retain_graph=True)[0] for signal in signals_BV.sum(dim=0)]
    gradients = torch.stack(views, dim=2)
    return attribution_BLC(gradients, embedding.detach(), torch.ones(4, 3), top_k=2).double()


def test_margins_give_the_attribution_of_probabilities() -> None:
    assert (toy_attribution("margin", 1.0, torch.float64) - 1 / math.sqrt(3)).abs().max() > 0.1  # not uniform
    difference = toy_attribution("margin", 1.0, torch.float64) - toy_attribution("p", 1.0, torch.float64)
    # ∇p loses a factor p(1 − p) ≥ 1e-3 to cancellation: 1e-16 × 1e3, some ten times
    assert difference.abs().max() < 1e-12


def test_only_margins_survive_a_sure_model_in_fp32() -> None:
    exact = toy_attribution("margin", 30.0, torch.float64)
    assert (toy_attribution("p", 30.0, torch.float32) - exact).abs().max() > 0.1
    assert (toy_attribution("margin", 30.0, torch.float32) - exact).abs().max() < 1e-5  # ~30 fp32 operations


def test_two_classes_need_one_view() -> None:
    """m_1 = −m_0: the mean over both classes is the distance of either."""
    student, teacher = rows(3, 4, 1, 6), rows(3, 4, 1, 6, seed=1)
    embedding = rows(3, 4, 6, seed=2)

    def distance(first: Tensor, second: Tensor) -> Tensor:
        left = attribution_BLC(first, embedding, MASK_BL, top_k=2)
        right = attribution_BLC(second, embedding, MASK_BL, top_k=2)
        return attribution_distance_B(left, right, norm="l2")[0]

    one = distance(student, teacher)
    both = distance(torch.cat([student, -student], dim=2), torch.cat([teacher, -teacher], dim=2))
    assert one.min() > 1e-3
    assert torch.allclose(one, both, rtol=1e-14, atol=0)


@pytest.mark.parametrize("norm", ["l1", "l2"])
def test_distance_by_hand_with_other_widths(norm: str) -> None:
    student = attribution_BLC(rows(3, 4, 2, 5), rows(3, 4, 5, seed=1), MASK_BL, top_k=2)
    teacher = attribution_BLC(rows(3, 4, 2, 9, seed=2), rows(3, 4, 9, seed=3), MASK_BL, top_k=4)
    found, flag = attribution_distance_B(student, teacher, norm=norm)
    assert flag.tolist() == [False] * 3
    for row in range(3):
        total = 0.0
        for token in range(4):
            for s, t in zip(student[row, token].tolist(), teacher[row, token].tolist(), strict=True):
                total += abs(s - t) if norm == "l1" else (s - t) ** 2
        assert found[row].item() == pytest.approx(total / 2, rel=1e-13)
    same, _ = attribution_distance_B(teacher, teacher, norm=norm)
    assert (same == 0).all()


def test_zero_attributions_are_flagged_and_weigh_nothing() -> None:
    student, teacher = rows(4, 3, 2), rows(4, 3, 2, seed=1)
    student[1] = 0.0
    teacher[2] = 0.0
    student[3, :, 0] = 0.0  # one class of two: the other one still counts
    student.requires_grad_(True)
    distance, flag = attribution_distance_B(student, teacher, norm="l2")
    assert flag.tolist() == [False, True, True, True]
    assert distance[[1, 2]].tolist() == [0.0, 0.0]
    assert distance[3].item() == pytest.approx(
        (student[3, :, 1] - teacher[3, :, 1]).square().sum().item() / 2
    )
    (gradient,) = torch.autograd.grad(distance.sum(), student)
    assert (gradient[[1, 2]] == 0).all()
    assert (gradient[3, :, 0] == 0).all()
    assert (gradient[3, :, 1] != 0).all()


@pytest.mark.parametrize("top_k", [0, 2])
def test_zero_tokens_and_sequences_keep_derivatives_finite(top_k: int) -> None:
    """Twice a norm, and twice 0/0 where a token or a whole sequence is zero."""
    gradients = rows(3, 4, 2, 6)
    gradients[0, 1] = 0.0
    gradients[1] = 0.0
    gradients.requires_grad_(True)
    embedding = rows(3, 4, 6, seed=1).requires_grad_(True)
    found = attribution_BLC(gradients, embedding, torch.ones(3, 4), top_k=top_k)
    assert (found[1] == 0).all()
    assert (found[0, 1] == 0).all()
    first = torch.autograd.grad(
        (found * rows(3, 4, 2, seed=2)).sum(), (gradients, embedding), create_graph=True
    )
    second = torch.autograd.grad(first[0].square().sum() + first[1].square().sum(), (gradients, embedding))
    for derivative in (*first, *second):
        assert derivative.isfinite().all()
        assert (derivative[1] == 0).all()
        assert (derivative[2] != 0).any()


@pytest.mark.parametrize("top_k", [0, 2])
def test_twice_differentiable(top_k: int) -> None:
    gradients, embedding = rows(2, 3, 2, 4).requires_grad_(True), rows(2, 3, 4, seed=1).requires_grad_(True)
    teacher = unit_rows(rows(2, 2, 3, seed=2).abs())[0].transpose(1, 2)
    mask = torch.tensor([[1, 1, 1], [1, 1, 0]])

    def distance(g: Tensor, e: Tensor) -> Tensor:
        return attribution_distance_B(attribution_BLC(g, e, mask, top_k=top_k), teacher, norm="l2")[0]

    assert torch.autograd.gradcheck(distance, (gradients, embedding))
    assert torch.autograd.gradgradcheck(distance, (gradients, embedding))
    assert torch.autograd.gradcheck(
        lambda g: attribution_distance_B(
            attribution_BLC(g, embedding, mask, top_k=top_k), teacher, norm="l1"
        )[0],
        (gradients,),
    )


def test_half_precision_is_computed_in_fp32() -> None:
    """bf16 keeps 8 bits of a product and of a sum over the width; fp32 of the same inputs keeps 24."""
    gradients, embedding = rows(3, 4, 2, 64).bfloat16(), rows(3, 4, 64, seed=1).bfloat16()
    found = attribution_BLC(gradients, embedding, MASK_BL, top_k=10)
    assert found.dtype == torch.float32
    exact = attribution_BLC(gradients.double(), embedding.double(), MASK_BL, top_k=10)
    assert (found.double() - exact).abs().max() < 1e-6  # ~20 operations below 1; bf16 would be 4e-3 off
    distance, _ = attribution_distance_B(found.bfloat16(), found, norm="l1")
    assert distance.dtype == torch.float32

"""The map between widths against the chain rule, float64. Tolerance: sums of 64 products of size 1, 1e-12."""

from __future__ import annotations

import torch
from torch import Tensor

from distill_dist.models.width_maps import WidthMaps

ROWS, LAYERS, VIEWS, TEACHER, STUDENT = 3, 2, 2, 12, 5


def maps(*, teacher: int = TEACHER, student: int = STUDENT, seed: int = 0) -> WidthMaps:
    torch.manual_seed(seed)
    return WidthMaps(LAYERS, teacher_width=teacher, student_width=student).double()


def normal(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()


def test_what_is_pulled_back_is_the_gradient_at_the_students_state() -> None:
    """A teacher's head that is linear in h_T = A·h_S: by autograd through A, ∂s/∂h_S is what comes back."""
    module, states_BKH = maps(), normal(ROWS, LAYERS, STUDENT)
    head_BKVT = normal(ROWS, LAYERS, VIEWS, TEACHER, seed=1)  # the teacher's gradient, since s = head·h_T
    mapped_BKT, pulled_BKVS = module(states_BKH, head_BKVT)
    assert mapped_BKT.shape == (ROWS, LAYERS, TEACHER)
    assert pulled_BKVS.shape == (ROWS, LAYERS, VIEWS, STUDENT)
    for layer in range(LAYERS):
        by_hand_BT = states_BKH[:, layer] @ module.weight_KTS[layer].T
        assert torch.allclose(mapped_BKT[:, layer], by_hand_BT, rtol=0, atol=1e-12)
    for view in range(VIEWS):
        signal = (head_BKVT[:, :, view] * mapped_BKT).sum()
        (expected_BKS,) = torch.autograd.grad(signal, states_BKH, retain_graph=True)
        assert expected_BKS.norm() > 1
        assert torch.allclose(pulled_BKVS[:, :, view], expected_BKS, rtol=0, atol=1e-12)
    assert (pulled_BKVS[:, :, 0] - pulled_BKVS[:, :, 1]).norm() > 1


def test_states_train_the_map_and_gradients_do_not() -> None:
    module = maps()
    mapped_BKT, pulled_BKVS = module(
        normal(ROWS, LAYERS, STUDENT), normal(ROWS, LAYERS, VIEWS, TEACHER, seed=1)
    )
    (trained,) = torch.autograd.grad(mapped_BKT.square().sum(), module.weight_KTS, retain_graph=True)
    assert (trained.flatten(1).norm(dim=1) > 0.1).all()
    (untrained,) = torch.autograd.grad(pulled_BKVS.square().sum(), module.weight_KTS, allow_unused=True)
    assert untrained is None


def test_constant_gradients_come_back_as_constants() -> None:
    """The teacher's are: nothing of G reaches anything but the student's own gradient."""
    gradients = normal(ROWS, LAYERS, VIEWS, TEACHER).detach()
    states = normal(ROWS, LAYERS, STUDENT)
    mapped_BKT, pulled_BKVS = maps()(states, gradients)
    assert mapped_BKT.requires_grad
    assert not pulled_BKVS.requires_grad


def test_without_gradients_the_states_alone() -> None:
    module, states = maps(), normal(ROWS, LAYERS, STUDENT)
    mapped_BKT, pulled = module(states, None)
    assert pulled is None
    assert torch.equal(mapped_BKT, module(states, normal(ROWS, LAYERS, VIEWS, TEACHER))[0])


def test_starts_semi_orthogonal_from_the_global_seed() -> None:
    up, down = maps().weight_KTS, maps(teacher=STUDENT, student=TEACHER).weight_KTS
    eye = torch.eye(STUDENT, dtype=torch.float64)
    for layer in range(LAYERS):  # made in fp32
        assert torch.allclose(up[layer].T @ up[layer], eye, rtol=0, atol=1e-6)
        assert torch.allclose(down[layer] @ down[layer].T, eye, rtol=0, atol=1e-6)
    assert (up[0] - up[1]).norm() > 0.1
    assert torch.equal(up, maps().weight_KTS)
    assert not torch.equal(up, maps(seed=1).weight_KTS)


def test_every_parameter_is_the_modules_own() -> None:
    """ZeRO 3 gathers around the forward of the owner; a child's would be used ungathered."""
    module = maps()
    assert [name for name, _ in module.named_parameters(recurse=False)] == ["weight_KTS"]
    assert len(list(module.parameters())) == 1


def test_half_precision_is_not_rounded_again() -> None:
    """bf16 weights and states, fp32 gradients, autocast: products and sums stay fp32."""
    torch.manual_seed(0)
    module = WidthMaps(LAYERS, teacher_width=64, student_width=32).bfloat16()
    states, gradients = normal(ROWS, LAYERS, 32).bfloat16(), normal(ROWS, LAYERS, 1, 64).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mapped_BKT, pulled_BKVS = module(states, gradients)
    assert (mapped_BKT.dtype, pulled_BKVS.dtype) == (torch.float32, torch.float32)
    exact = module.double()(states.double(), gradients.double())
    for found, expected in zip((mapped_BKT, pulled_BKVS), exact, strict=True):
        assert (found - expected).norm() < 1e-6 * expected.norm()  # bf16 would be 4e-3

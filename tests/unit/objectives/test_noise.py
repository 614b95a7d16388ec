"""Noise as a function of the row, and KD under it as Jacobian matching."""

from __future__ import annotations

import itertools
import math
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from distill_dist.objectives.divergences import distillation_B
from distill_dist.objectives.noise import embedding_noise_BLH, noisy_distillation_B
from distill_dist.records import NoiseSpec

SPEC = NoiseSpec(std=0.3, draws=4, seed=7)
IDS_BL = torch.tensor([[101, 7, 8, 9, 102], [101, 7, 102, 0, 0], [101, 9, 8, 102, 0]])
MASK_BL = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 1, 1, 1, 0]])


def noise(ids: Tensor = IDS_BL, mask: Tensor = MASK_BL, *, width: int = 6, draw: int = 0) -> Tensor:
    return embedding_noise_BLH(ids, mask, width=width, spec=SPEC, draw=draw)


def test_zero_on_padding_only() -> None:
    found = noise()
    assert found.shape == (3, 5, 6)
    assert found.dtype == torch.float32
    assert ((found != 0).all(dim=-1) == MASK_BL.bool()).all()


def test_a_row_does_not_depend_on_its_batch() -> None:
    """Neighbours, order, length of the padding, the side of the padding and what stands on it."""
    found = noise()
    assert torch.equal(noise(IDS_BL.flip(0), MASK_BL.flip(0)), found.flip(0))
    alone = noise(IDS_BL[1:2, :3], MASK_BL[1:2, :3])
    assert torch.equal(alone[0], found[1, :3])
    longer = noise(
        torch.nn.functional.pad(IDS_BL, (0, 40), value=5), torch.nn.functional.pad(MASK_BL, (0, 40))
    )
    assert torch.equal(longer[:, :5], found)
    left = noise(torch.tensor([[3, 3, 101, 7, 102]]), torch.tensor([[0, 0, 1, 1, 1]]))
    assert torch.equal(left[0, 2:], found[1, :3])
    assert (left[0, :2] == 0).all()


def test_draws_seeds_and_rows_differ() -> None:
    """No two of them share a row of noise, and none is a multiple of another."""
    kinds = [noise(draw=draw) for draw in range(4)]
    kinds.append(embedding_noise_BLH(IDS_BL, MASK_BL, width=6, spec=replace(SPEC, seed=8), draw=0))
    kinds.append(embedding_noise_BLH(IDS_BL, MASK_BL, width=6, spec=replace(SPEC, seed=-7), draw=0))
    heads = torch.stack([kind[row, :3].flatten() for kind in kinds for row in range(3)])
    assert torch.corrcoef(heads).fill_diagonal_(0.0).abs().max() < 0.95  # 18 rows of 18 numbers
    # the same tokens in another order are another row
    swapped = noise(torch.tensor([[101, 8, 7, 9, 102]]), torch.ones(1, 5))
    assert (swapped[0] - noise()[0]).abs().max() > 0.1
    # more draws than before change none of the first
    assert torch.equal(
        embedding_noise_BLH(IDS_BL, MASK_BL, width=6, spec=replace(SPEC, draws=9), draw=1), kinds[1]
    )


def test_the_std_is_a_factor() -> None:
    doubled = embedding_noise_BLH(IDS_BL, MASK_BL, width=6, spec=replace(SPEC, std=0.6), draw=0)
    assert torch.equal(doubled, 2 * noise())


def test_moments() -> None:
    """n values: mean within 5σ/√n of 0, variance within 5·σ²·√(2/n), kurtosis 3 within 5·√(24/n)."""
    ids = torch.arange(50 * 20).reshape(50, 20)
    values = noise(ids, torch.ones_like(ids), width=100).double() / SPEC.std
    n = values.numel()
    assert abs(values.mean().item()) < 5 / math.sqrt(n)
    assert values.square().mean().item() == pytest.approx(1, abs=5 * math.sqrt(2 / n))
    # the fourth power of a normal number has variance 96
    assert values.pow(4).mean().item() == pytest.approx(3, abs=5 * math.sqrt(96 / n))
    # neighbouring tokens and rows are independent
    for a, b in ((values[:, 1:], values[:, :-1]), (values[1:], values[:-1])):
        assert abs((a * b).mean().item()) < 5 / math.sqrt(a.numel())


CHILD = """
import torch
from distill_dist.objectives.noise import embedding_noise_BLH
from distill_dist.records import NoiseSpec
ids, mask = torch.tensor({ids}), torch.tensor({mask})
found = embedding_noise_BLH(ids, mask, width=6, spec=NoiseSpec(std=0.3, draws=4, seed=7), draw=2)
print(found.numpy().tobytes().hex(), torch.backends.cpu.get_cpu_capability())
"""


def test_the_same_in_another_process_on_another_processor() -> None:
    """Bit-equal in a fresh process; on a CPU without vector units the stream is the same, its last bits are not.

    The teacher may run on another kind of host than the student.
    """
    code = CHILD.format(ids=IDS_BL.tolist(), mask=MASK_BL.tolist())
    environments = [{"PYTHONHASHSEED": "1"}, {"PYTHONHASHSEED": "2", "ATEN_CPU_CAPABILITY": "default"}]
    children = [
        subprocess.Popen(
            [sys.executable, "-c", code], env={**os.environ, **more}, stdout=subprocess.PIPE, text=True
        )
        for more in environments
    ]
    (same, _), (plain, capability) = (child.communicate(timeout=120)[0].split() for child in children)
    expected = noise(draw=2)
    assert (expected - noise()).abs().max() > 0.1
    assert bytes.fromhex(same) == expected.numpy().tobytes()
    assert capability == "DEFAULT"
    found = torch.from_numpy(np.frombuffer(bytes.fromhex(plain), dtype="<f4").reshape(3, 5, 6).copy())
    # a logarithm, a root and a cosine in fp32 of values below 5 × std
    assert torch.allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_mean_over_draws_by_hand() -> None:
    generator = torch.Generator().manual_seed(0)
    student = torch.randn(4, 3, 5, generator=generator, dtype=torch.float64)
    teacher = torch.randn(4, 3, 5, generator=generator, dtype=torch.float64)
    found = noisy_distillation_B(student, teacher, temperature=2.0, per_class=True)
    draws = [
        distillation_B(student[:, draw], teacher[:, draw], temperature=2.0, per_class=True)
        for draw in range(3)
    ]
    assert (draws[0] - draws[1]).abs().min() > 1e-3
    assert torch.allclose(found, (draws[0] + draws[1] + draws[2]) / 3, rtol=1e-14, atol=0)
    one = noisy_distillation_B(student[:, :1], teacher[:, :1], temperature=2.0, per_class=False)
    assert torch.allclose(one, distillation_B(student[:, 0], teacher[:, 0], temperature=2.0, per_class=False))


# The theorem. In two dimensions a Gauss-Hermite rule gives E over ξ exactly; no Monte Carlo.
TAU = 2.0
X_H = torch.tensor([0.4, -0.3], dtype=torch.float64)
Network = Callable[[Tensor], Tensor]  # [n, 2] → logits [n, 3]


def network(seed: int, at_x: Tensor | None = None) -> Network:
    """A smooth small network; with ``at_x`` its logits at X_H are shifted to these."""
    generator = torch.Generator().manual_seed(seed)
    first, second = (
        torch.randn(2, 4, generator=generator, dtype=torch.float64),
        torch.randn(4, 3, generator=generator, dtype=torch.float64),
    )
    shift = torch.zeros(3, dtype=torch.float64)
    if at_x is not None:
        shift = at_x - torch.tanh(X_H @ first) @ second
    return lambda points: torch.tanh(points @ first) @ second + shift


def kd_at(student: Network, teacher: Network, points_DH: Tensor) -> Tensor:
    """KD at every point [D], by the project's function with D rows of one draw."""
    return noisy_distillation_B(
        student(points_DH)[:, None], teacher(points_DH)[:, None], temperature=TAU, per_class=False
    )


def expected_kd(student: Network, teacher: Network, sigma: float) -> float:
    """E over ξ ~ N(0, σ²) of KD at x + ξ, by 24 × 24 nodes."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(24)
    nodes_D, weights_D = torch.from_numpy(nodes), torch.from_numpy(weights / weights.sum())
    points_DH = X_H + sigma * torch.cartesian_prod(nodes_D, nodes_D)
    return (torch.outer(weights_D, weights_D).flatten() * kd_at(student, teacher, points_DH)).sum().item()


def jacobian_CH(model: Network) -> Tensor:
    return torch.autograd.functional.jacobian(lambda x: model(x[None])[0], X_H)


def test_where_logits_agree_noisy_kd_is_jacobian_matching() -> None:
    """z_S(x) = z_T(x): E KD(x + ξ) = σ²/2 · tr[(J_S − J_T)ᵀ F (J_S − J_T)] + O(σ⁴), F = diag p − p·pᵀ.

    KL(p‖q) has zero value and zero derivative at q = p and the Hessian F/τ² in the logits of q; both logits move
    by Jξ, E ξξᵀ = σ²·1, odd orders vanish. The remainder's ratio is O(σ²): halving σ must divide it by 4.
    """
    teacher = network(0)
    logits_C = teacher(X_H[None])[0]
    student = network(1, at_x=logits_C)
    p = (logits_C / TAU).softmax(dim=-1)
    difference = jacobian_CH(student) - jacobian_CH(teacher)
    jacobian_term = torch.trace(difference.T @ (torch.diag(p) - torch.outer(p, p)) @ difference).item() / 2
    assert kd_at(student, teacher, X_H[None]).item() == pytest.approx(0, abs=1e-14)  # plain KD sees nothing
    assert jacobian_term > 0.1
    errors = [
        expected_kd(student, teacher, sigma) / sigma**2 / jacobian_term - 1 for sigma in (0.08, 0.04, 0.02)
    ]
    assert abs(errors[0]) > 1e-4  # above the rounding of a KL of 1e-4: 1e-16 / 1e-4
    assert abs(errors[2]) < 0.01
    for larger, smaller in itertools.pairwise(errors):
        assert larger / smaller == pytest.approx(4, rel=0.1)  # the next order is σ² ≈ 1 % times a constant


def test_equal_jacobians_leave_nothing_of_second_order() -> None:
    """Models that agree in value and Jacobian at x and nowhere else: E KD is O(σ⁴)."""
    teacher = network(0)
    jacobian, at_x = jacobian_CH(teacher), teacher(X_H[None])[0]

    def student(points_DH: Tensor) -> Tensor:
        return at_x + (points_DH - X_H) @ jacobian.T

    values = [expected_kd(student, teacher, sigma) for sigma in (0.2, 0.1)]
    assert values[0] > 1e-6
    assert values[0] / values[1] == pytest.approx(16, rel=0.2)  # σ⁴, corrected by order σ² = 4 %


def test_elsewhere_noise_adds_half_the_laplacian() -> None:
    """E KD(x + ξ) − KD(x) = σ²/2 · Δ_x KD + O(σ⁴) for any two models."""
    teacher, student = network(0), network(1)
    hessian = torch.autograd.functional.hessian(lambda x: kd_at(student, teacher, x[None])[0], X_H)
    laplacian = torch.trace(hessian).item()
    plain = kd_at(student, teacher, X_H[None]).item()
    assert plain > 0.1
    assert abs(laplacian) > 0.1
    errors = [
        (expected_kd(student, teacher, sigma) - plain) / sigma**2 - laplacian / 2 for sigma in (0.08, 0.04)
    ]
    assert abs(errors[1]) < 0.05 * abs(laplacian)
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.1)


def test_the_projects_noise_estimates_that_expectation() -> None:
    """The mean over many draws of `embedding_noise_BLH` lies within 5 standard errors of the exact expectation."""
    sigma, draws = 0.1, 2000
    teacher = network(0)
    student = network(1, at_x=teacher(X_H[None])[0])
    spec = NoiseSpec(std=sigma, draws=draws, seed=0)
    ids, mask = torch.tensor([[42]]), torch.ones(1, 1)
    xi_DH = torch.cat(
        [embedding_noise_BLH(ids, mask, width=2, spec=spec, draw=draw)[0] for draw in range(draws)]
    )
    points_DH = X_H + xi_DH.double()
    found = noisy_distillation_B(
        student(points_DH)[None], teacher(points_DH)[None], temperature=TAU, per_class=False
    )
    error = kd_at(student, teacher, points_DH).std().item() / math.sqrt(draws)
    exact = expected_kd(student, teacher, sigma)
    assert 5 * error < 0.3 * exact  # the estimate says something
    assert found.item() == pytest.approx(exact, abs=5 * error)

"""The pieces of a central difference, each by hand, and its order on a function whose third derivative is known."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from distill_dist.models.central_difference import Direction, both_sides, choose_direction, surrogate

ROWS, LENGTH, VIEWS, LAYERS, WIDTH = 3, 4, 2, 2, 5
STEP = 5e-3
MASK_BL = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 0]])


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def at_embedding(seed: int = 0) -> Tensor:
    return normal(ROWS, LENGTH, VIEWS, WIDTH, seed=seed) * MASK_BL[..., None, None]


EMBEDDING_BLH, STATES_BKH = normal(ROWS, LENGTH, WIDTH, seed=8), 3 * normal(ROWS, LAYERS, WIDTH, seed=9)


def choose(embedding: Tensor | None, cls: Tensor | None, step: float = STEP) -> Direction:
    return choose_direction(
        embedding,
        cls,
        embedding_BLH=EMBEDDING_BLH,
        mask_BL=MASK_BL,
        cls_states_BKH=None if cls is None else STATES_BKH,
        step=step,
    )


# ------------------------------------------------------------------ the step


def test_the_embedding_moves_by_the_step_times_its_norm() -> None:
    """ε·‖v‖ = step·‖E‖ for every row and view; E is what stands on real tokens."""
    v_BLVH = at_embedding()
    epsilon_BV = choose(v_BLVH, None).epsilon_BV
    assert epsilon_BV.shape == (ROWS, VIEWS)
    for row in range(ROWS):
        real = int(MASK_BL[row].sum())
        norm = EMBEDDING_BLH[row, :real].norm().item()
        assert real == LENGTH or norm < 0.99 * EMBEDDING_BLH[row].norm()
        for view in range(VIEWS):
            moved = epsilon_BV[row, view].item() * v_BLVH[row, :, view].norm().item()
            assert moved == pytest.approx(STEP * norm, rel=1e-12)


def test_the_length_of_v_does_not_count() -> None:
    """A loss weight or a count multiplies v; the points move as far as before."""
    v_BLVH, v_BKVH = at_embedding(), normal(ROWS, LAYERS, VIEWS, WIDTH, seed=1)
    first, second = choose(v_BLVH, v_BKVH), choose(1e-6 * v_BLVH, 1e-6 * v_BKVH)
    for a, b in zip(both(first), both(second), strict=True):
        assert torch.allclose(a, b, rtol=1e-12, atol=0)


def both(direction: Direction) -> tuple[Tensor, Tensor]:
    sides = both_sides(direction)
    assert sides.embedding_BLH is not None
    assert sides.cls_BKH is not None
    return sides.embedding_BLH, sides.cls_BKH


def test_with_more_points_each_moves_by_less_than_its_share() -> None:
    """√Σ_p (ε‖v_p‖/‖x_p‖)² = step over the embedding and every [CLS] state."""
    v_BLVH, v_BKVH = at_embedding(), normal(ROWS, LAYERS, VIEWS, WIDTH, seed=1)
    for embedding, cls in ((v_BLVH, v_BKVH), (None, v_BKVH)):
        epsilon_BV = choose(embedding, cls).epsilon_BV
        for row in range(ROWS):
            norm_of_e = EMBEDDING_BLH[row, : int(MASK_BL[row].sum())].norm()
            for view in range(VIEWS):
                shares = [cls[row, k, view].norm() / STATES_BKH[row, k].norm() for k in range(LAYERS)]
                if embedding is not None:
                    shares.append(embedding[row, :, view].norm() / norm_of_e)
                moved = [(epsilon_BV[row, view] * share).item() for share in shares]
                assert sum(m**2 for m in moved) == pytest.approx(STEP**2, rel=1e-12)


def test_a_row_that_is_not_moved_has_no_step() -> None:
    """Fillers, and rows that agree with their teacher already: 0, not 0/0; a view may be still alone."""
    v_BLVH, v_BKVH = at_embedding(), normal(ROWS, LAYERS, VIEWS, WIDTH, seed=1)
    v_BLVH[1], v_BKVH[1] = 0.0, 0.0
    v_BLVH[2, :, 0], v_BKVH[2, :, 0] = 0.0, 0.0
    v_BLVH[0, :, 1] = 0.0  # its [CLS] still moves
    direction = choose(v_BLVH, v_BKVH)
    assert (direction.epsilon_BV == 0).tolist() == [[False, False], [True, True], [True, False]]
    for sides in both(direction):
        assert sides.isfinite().all()
        still = (sides.view(2, VIEWS, ROWS, -1) == 0).all(dim=-1)
        assert still[0].tolist() == still[1].tolist()
        assert still[0, :, 1].tolist() == [True, True]
    margins = normal(2 * VIEWS * ROWS).requires_grad_(True)
    (gradient,) = torch.autograd.grad(surrogate(margins, direction), margins)
    expected = 1 / (2 * direction.epsilon_BV.T)
    expected = expected.masked_fill(direction.epsilon_BV.T == 0, 0.0)
    assert torch.allclose(gradient.view(2, VIEWS, ROWS)[0], expected, rtol=1e-12, atol=0)
    assert torch.equal(gradient.view(2, VIEWS, ROWS)[1], -gradient.view(2, VIEWS, ROWS)[0])


def test_a_tiny_v_is_not_taken_for_none() -> None:
    """fp32: squares of 1e-12 are 1e-24, far above its smallest number; 1e-30 would underflow, and is no gradient."""
    v_BLVH = at_embedding().float() * 1e-12
    direction = choose(v_BLVH, None)
    assert (direction.epsilon_BV > 0).all()
    found, expected = (both_sides(d).embedding_BLH for d in (direction, choose(at_embedding(), None)))
    assert found is not None
    assert expected is not None
    assert torch.allclose(found.double(), expected, rtol=1e-5, atol=0)


# ------------------------------------------------------------------ the rows


@pytest.mark.parametrize("still_rows", [0, 3])
def test_order_of_both_sides(still_rows: int) -> None:
    """[still rows,] + of view 0 for every row, + of view 1, …, then − in the same order."""
    v_BLVH, v_BKVH = at_embedding(), normal(ROWS, LAYERS, VIEWS, WIDTH, seed=1)
    direction = choose(v_BLVH, v_BKVH)
    sides = both_sides(direction, still_rows=still_rows)
    for found, v_BXVH in ((sides.embedding_BLH, v_BLVH), (sides.cls_BKH, v_BKVH)):
        assert found is not None
        assert len(found) == still_rows + 2 * VIEWS * ROWS
        assert (found[:still_rows] == 0).all()
        place = still_rows
        for sign in (1, -1):
            for view in range(VIEWS):
                for row in range(ROWS):
                    expected = sign * direction.epsilon_BV[row, view] * v_BXVH[row, :, view]
                    assert expected.norm() > 0
                    assert torch.equal(found[place], expected)
                    place += 1


def test_points_that_are_not_there_stay_away() -> None:
    v_BLVH, v_BKVH = at_embedding(), normal(ROWS, LAYERS, VIEWS, WIDTH, seed=1)
    assert both_sides(choose(v_BLVH, None)).cls_BKH is None
    assert both_sides(choose(None, v_BKVH)).embedding_BLH is None


def test_surrogate_by_hand() -> None:
    direction = Direction(None, None, torch.tensor([[0.1, 0.2], [0.0, 0.4], [0.5, 0.5]]))
    margins = torch.arange(1.0, 13.0) ** 2  # + of view 0: rows 1, 2, 3; + of view 1: 4, 5, 6; −: 7 to 12
    expected = 0.0
    for view in range(2):
        for row in range(3):
            epsilon = direction.epsilon_BV[row, view].item()
            plus, minus = (margins[side * 6 + view * 3 + row].item() for side in (0, 1))
            expected += (plus - minus) / (2 * epsilon) if epsilon else 0.0
    assert surrogate(margins, direction).item() == pytest.approx(expected, rel=1e-6)


# ------------------------------------------------------------------ its order


class Model(torch.nn.Module):
    """Margins of two classes that are smooth, far from quadratic functions of E and of two inner states."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.read = (torch.nn.Parameter(normal(WIDTH, WIDTH, seed=s) / 2) for s in (4, 5))
        self.views = torch.nn.Parameter(normal(VIEWS, WIDTH, seed=6))

    def forward(self, embedding_BLH: Tensor, states_BKH: Tensor) -> Tensor:
        """[B, V]"""
        pooled_BH = torch.tanh(embedding_BLH @ self.inner).sum(dim=1) + torch.sin(states_BKH @ self.read).sum(
            dim=1
        )
        return torch.sin(pooled_BH) @ self.views.T


def exact_gradient(model: Model, v_BLVH: Tensor, v_BKVH: Tensor) -> list[Tensor]:
    """∂/∂θ ⟨v, ∇ₓm⟩ by differentiating twice."""
    total = torch.zeros((), dtype=torch.float64)
    for view in range(VIEWS):
        points = (EMBEDDING_BLH.clone().requires_grad_(True), STATES_BKH.clone().requires_grad_(True))
        margins_BV = model(*points)
        slopes = torch.autograd.grad(margins_BV[:, view].sum(), points, create_graph=True)
        total = total + (slopes[0] * v_BLVH[:, :, view]).sum() + (slopes[1] * v_BKVH[:, :, view]).sum()
    return list(torch.autograd.grad(total, list(model.parameters())))


def by_difference(model: Model, v_BLVH: Tensor, v_BKVH: Tensor, step: float) -> list[Tensor]:
    direction = choose(v_BLVH, v_BKVH, step)
    moved_MLH, moved_MKH = both(direction)
    times = 2 * VIEWS
    margins_MV = model(
        EMBEDDING_BLH.repeat(times, 1, 1) + moved_MLH, STATES_BKH.repeat(times, 1, 1) + moved_MKH
    )
    views_M = torch.arange(VIEWS).repeat_interleave(ROWS).repeat(2)
    margins_M = margins_MV.gather(1, views_M[:, None])[:, 0]
    return list(torch.autograd.grad(surrogate(margins_M, direction), list(model.parameters())))


def test_the_error_falls_by_four_when_the_step_halves() -> None:
    """Steps at which the fourth order (h² of the second) and rounding (1e-16 / h of the value) are below 1 %."""
    model, v_BLVH, v_BKVH = Model(), at_embedding(), normal(ROWS, LAYERS, VIEWS, WIDTH, seed=1)
    exact = torch.cat([g.flatten() for g in exact_gradient(model, v_BLVH, v_BKVH)])
    errors = []
    for step in (4e-3, 2e-3, 1e-3):
        found = torch.cat([g.flatten() for g in by_difference(model, v_BLVH, v_BKVH, step)])
        errors.append(((found - exact).norm() / exact.norm()).item())
    assert 1e-8 < errors[2] < 1e-4
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.01)
    assert errors[1] / errors[2] == pytest.approx(4, rel=0.01)

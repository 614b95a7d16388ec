"""The parameter gradient of a gradient by a central difference: first-order autograd only.

An objective G of the input gradient g = ∇ₓm has the parameter gradient ∂/∂θ ⟨v, ∇ₓm(θ)⟩ with v = ∂G/∂g held
constant, which is ∂/∂θ [m(x + εv) − m(x − εv)] / 2ε up to O(ε²). So any attention kernel, sharding,
checkpointing and compilation that can run a forward and a backward will do (FACTS, second-order gradients).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from distill_dist.models.hooks import Displacement
from distill_dist.records import at_least_fp32


@dataclass(frozen=True)
class Direction:
    """v at the inner points, one per view, and the step ε along it; ε is 0 where v is."""

    embedding_BLVH: Tensor | None
    cls_BKVH: Tensor | None
    epsilon_BV: Tensor


def choose_direction(
    embedding_BLVH: Tensor | None,
    cls_BKVH: Tensor | None,
    *,
    embedding_BLH: Tensor,
    mask_BL: Tensor,
    cls_states_BKH: Tensor | None,
    step: float,
) -> Direction:
    """The direction v with an ε per sequence and view: points move by at most ``step`` × their norm.

    ε = step / √(Σ_p ‖v_p‖²/‖x_p‖²) over the embeddings of a sequence (one point of L·H numbers) and its [CLS]
    states; with the embeddings alone ε‖v‖ = step · ‖E‖.
    """
    relative_BV = torch.zeros(())
    if embedding_BLVH is not None:
        scale_B = (at_least_fp32(embedding_BLH) * mask_BL[..., None]).square().sum(dim=(1, 2))
        relative_BV = embedding_BLVH.square().sum(dim=(1, 3)) / scale_B[:, None]
    if cls_BKVH is not None:
        assert cls_states_BKH is not None
        scale_BK = at_least_fp32(cls_states_BKH).square().sum(dim=-1)
        relative_BV = relative_BV + (cls_BKVH.square().sum(dim=-1) / scale_BK[..., None]).sum(dim=1)
    still_BV = relative_BV == 0
    epsilon_BV = (step / relative_BV.masked_fill(still_BV, 1.0).sqrt()).masked_fill(still_BV, 0.0)
    return Direction(embedding_BLVH, cls_BKVH, epsilon_BV)


def both_sides(direction: Direction, *, still_rows: int = 0) -> Displacement:
    """x + εv and x − εv as rows: all views of +, then all of −, each with the B rows in order [2VB, …].

    Before them ``still_rows`` rows that stay where they are.
    """
    return Displacement(
        _sides(direction.embedding_BLVH, direction.epsilon_BV, still_rows),
        _sides(direction.cls_BKVH, direction.epsilon_BV, still_rows),
    )


def _sides(values_BXVH: Tensor | None, epsilon_BV: Tensor, still_rows: int) -> Tensor | None:
    if values_BXVH is None:
        return None
    moved = (values_BXVH * epsilon_BV[:, None, :, None]).permute(2, 0, 1, 3).flatten(0, 1)
    still = moved.new_zeros(still_rows, *moved.shape[1:])
    return torch.cat([still, moved, -moved])


def surrogate(margins_2VB: Tensor, direction: Direction) -> Tensor:
    """Σ [m(x + εv) − m(x − εv)] / 2ε over rows and views: its parameter gradient is the aligned terms'."""
    plus_VB, minus_VB = margins_2VB.view(2, -1, len(direction.epsilon_BV)).unbind()
    epsilon_VB = direction.epsilon_BV.T
    still_VB = epsilon_VB == 0
    slope_VB = (plus_VB - minus_VB) / (2 * epsilon_VB.masked_fill(still_VB, 1.0))
    return slope_VB.masked_fill(still_VB, 0.0).sum()

"""Linear maps between the widths of two models, one per matched layer (DESIGN, "Hidden widths may differ")."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from distill_dist.records import at_least_fp32

WIDTH_MAPS = "width_maps"  # the maps' name inside a student that trains; no part of what is exported


class WidthMaps(nn.Module):
    """A_k [H_T, H_S] for every matched layer k: h_T ≈ A_k·h_S, and by the chain rule ∂s/∂h_S = A_kᵀ·∂s/∂h_T.

    Patience alone trains A. Gradient alignment takes it as a constant, or the map instead of the student would
    learn to satisfy it. Starts semi-orthogonal, from torch's global generator: where H_T ≥ H_S, AᵀA is the identity.
    """

    def __init__(self, num_layers: int, *, teacher_width: int, student_width: int) -> None:
        super().__init__()
        maps = [nn.init.orthogonal_(torch.empty(teacher_width, student_width)) for _ in range(num_layers)]
        # T and S stand for H of teacher and student. The parameter is this module's own, not a child's: ZeRO 3
        # gathers parameters around the forward of the module that owns them, and nowhere else.
        self.weight_KTS = nn.Parameter(torch.stack(maps))

    def forward(
        self, states_BKH: Tensor, teacher_gradients_BKVH: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """(student states [B, K, H_S] as teacher's [B, K, H_T], teacher gradients pulled back [B, K, V, H_S]).

        Both in fp32 or better, also under autocast, with graphs: the first to A and the states, the second only
        to the teacher's gradients. Rows of A are no longer orthogonal once trained: norms are not kept.
        """
        with torch.autocast(states_BKH.device.type, enabled=False):
            weight_KTS, states_BKH = at_least_fp32(self.weight_KTS), at_least_fp32(states_BKH)
            mapped_BKT = torch.einsum("kts,bks->bkt", weight_KTS, states_BKH)
            if teacher_gradients_BKVH is None:
                return mapped_BKT, None
            gradients_BKVT = at_least_fp32(teacher_gradients_BKVH).to(weight_KTS.dtype)
            return mapped_BKT, torch.einsum("kts,bkvt->bkvs", weight_KTS.detach(), gradients_BKVT)

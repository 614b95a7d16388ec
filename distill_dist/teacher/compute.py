"""From a teacher model and token ids to the signal: a pure function of the sample (DESIGN, invariant 3)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from distill_dist.models.encoder import EncoderParts
from distill_dist.models.hooks import gradients_at, watch_points
from distill_dist.objectives.alignment import unit_rows
from distill_dist.objectives.signal import margin_B, own_class_B
from distill_dist.records import SignalSpec, TeacherSignal

# Below 16 rows, and below 16 positions, CPU kernels change the last bits of a row: the width of their vectors
# (AVX-512). tests/unit/teacher/test_compute.py sees it.
MIN_ROWS = MIN_LENGTH = 16


def compute_signal(
    teacher: EncoderParts,
    input_ids_BL: Tensor,
    attention_mask_BL: Tensor,
    token_type_ids_BL: Tensor,
    spec: SignalSpec,
    *,
    min_rows: int = MIN_ROWS,
    min_length: int = MIN_LENGTH,
) -> TeacherSignal:
    """The signal of a frozen teacher in eval mode for rows of token ids.

    At least ``min_rows`` rows of ``min_length`` positions are run; rows repeat and padding grows to fill up.
    """
    rows, length = input_ids_BL.shape
    given = (input_ids_BL, attention_mask_BL, token_type_ids_BL)
    inputs = tuple(_fill_up(values_BL, rows=min_rows, length=min_length) for values_BL in given)
    mask_BL = inputs[1].bool()
    with (
        torch.set_grad_enabled(spec.gradients),
        watch_points(
            teacher,
            layers=spec.layers,
            embedding_gradient=spec.embedding_gradient,
            cls_gradients=spec.cls_gradients,
        ) as points,
    ):
        logits_BC = teacher.logits_BC(*inputs)
        signal = margin_B(logits_BC, own_class_B(logits_BC)).sum()
        embedding_BLH, cls_BKH = gradients_at(signal, points, layers=spec.layers, create_graph=False)
    states_BKH = None
    if spec.cls_states:
        stacked = torch.stack([points.cls_states_BH[layer] for layer in spec.layers], dim=1)
        states_BKH = unit_rows(stacked.detach())[0][:rows]
    unit_BLH = norm_BL = None
    if embedding_BLH is not None:
        unit_BLH, norm_BL = unit_rows(embedding_BLH)
        unit_BLH = unit_BLH.masked_fill(~mask_BL[..., None], 0.0)[:rows, :length]
        norm_BL = norm_BL.masked_fill(~mask_BL, 0.0)[:rows, :length]
    return TeacherSignal(
        logits_BC=logits_BC.detach()[:rows],
        cls_states_BKH=states_BKH,
        cls_gradients_BKH=None if cls_BKH is None else unit_rows(cls_BKH)[0][:rows],
        embedding_gradient_BLH=unit_BLH,
        embedding_gradient_norm_BL=norm_BL,
    )


def _fill_up(values_BL: Tensor, *, rows: int, length: int) -> Tensor:
    """``values_BL`` with at least ``rows`` rows, which repeat, of at least ``length`` positions.

    The new positions hold 0, a token that every vocabulary has and, in the mask, one that nobody attends to.
    """
    index = torch.arange(max(rows, len(values_BL)), device=values_BL.device) % len(values_BL)
    return functional.pad(values_BL[index], (0, max(0, length - values_BL.shape[1])))


def describe_model(parts: EncoderParts) -> dict[str, Any]:
    """What the run's summary says of a teacher."""
    return {"parameters": sum(parameter.numel() for parameter in parts.model.parameters())}

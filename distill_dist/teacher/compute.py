"""From a teacher model and token ids to the signal: a pure function of the sample (DESIGN, invariant 3)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from distill_dist.models.encoder import EncoderParts
from distill_dist.models.hooks import gradients_at, noisy_logits_BDC, watch_points
from distill_dist.objectives.alignment import unit_rows
from distill_dist.objectives.attribution import attribution_BLC
from distill_dist.objectives.noise import all_noise_BDLH
from distill_dist.objectives.signal import differentiated_BV, margins_BV, pick_views, signal_classes_BV
from distill_dist.records import Inputs, SignalSpec, TeacherSignal

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
    labels_B: Tensor | None = None,
    min_rows: int = MIN_ROWS,
    min_length: int = MIN_LENGTH,
) -> TeacherSignal:
    """The signal of a frozen teacher in eval mode for rows of token ids.

    ``labels_B`` is read where ``spec.needs_labels``. At least ``min_rows`` rows of ``min_length`` positions are
    run; rows repeat and padding grows to fill up.
    """
    rows, length = input_ids_BL.shape
    ids_BL, mask_BL, types_BL = (
        _fill_up(values_BL, rows=min_rows, length=min_length)
        for values_BL in (input_ids_BL, attention_mask_BL, token_type_ids_BL)
    )
    inputs = (ids_BL, mask_BL, types_BL)
    if labels_B is not None:
        labels_B = labels_B[_repeated(len(labels_B), min_rows, labels_B.device)]
    whole = _signal(teacher, inputs, spec, labels_B)
    return TeacherSignal(
        logits_BC=whole.logits_BC[:rows],
        cls_states_BKH=None if whole.cls_states_BKH is None else whole.cls_states_BKH[:rows],
        cls_gradients_BKVH=None if whole.cls_gradients_BKVH is None else whole.cls_gradients_BKVH[:rows],
        embedding_gradient_BLVH=_cut(whole.embedding_gradient_BLVH, rows, length),
        embedding_gradient_norm_BLV=_cut(whole.embedding_gradient_norm_BLV, rows, length),
        attribution_BLC=_cut(whole.attribution_BLC, rows, length),
        noisy_logits_BDC=None if whole.noisy_logits_BDC is None else whole.noisy_logits_BDC[:rows],
    )


def _signal(
    teacher: EncoderParts, inputs: Inputs, spec: SignalSpec, labels_B: Tensor | None
) -> TeacherSignal:
    mask_BL = inputs[1].bool()
    wants_attribution = spec.attribution_top_k is not None
    with (
        torch.set_grad_enabled(spec.gradients),
        watch_points(
            teacher,
            layers=spec.layers,
            embedding_gradient=spec.embedding_gradient or wants_attribution,
            cls_gradients=spec.cls_gradients,
        ) as points,
    ):
        logits_BC = teacher.logits_BC(*inputs)
        classes_BV = signal_classes_BV(spec.signal, logits_BC, teacher_logits_BC=None, labels_B=labels_B)
        views_BV = differentiated_BV(classes_BV, logits_BC, every_class=wants_attribution)
        embedding_BLVH, cls_BKVH = gradients_at(
            margins_BV(logits_BC, views_BV).sum(dim=0),
            points,
            layers=spec.layers,
            create_graph=False,
            retain_graph=False,
        )
    states_BKH = attribution = unit_BLVH = norm_BLV = noisy = None
    if spec.cls_states:
        stacked = torch.stack([points.cls_states_BH[layer] for layer in spec.layers], dim=1)
        states_BKH = unit_rows(stacked.detach())[0]
    if wants_attribution:
        assert embedding_BLVH is not None
        assert points.embedding_BLH is not None
        assert spec.attribution_top_k is not None
        attribution = attribution_BLC(
            embedding_BLVH, points.embedding_BLH.detach(), mask_BL, top_k=spec.attribution_top_k
        )
    if spec.embedding_gradient:
        assert embedding_BLVH is not None
        unit_BLVH, norm_BLV = unit_rows(pick_views(embedding_BLVH, classes_BV, views_BV))
        unit_BLVH = unit_BLVH.masked_fill(~mask_BL[..., None, None], 0.0)
        norm_BLV = norm_BLV.masked_fill(~mask_BL[..., None], 0.0)
    if spec.noise is not None:
        with torch.no_grad():
            noise = all_noise_BDLH(*inputs[:2], width=teacher.embedding_size, spec=spec.noise)
            noisy = noisy_logits_BDC(teacher, inputs, noise)
    return TeacherSignal(
        logits_BC=logits_BC.detach(),
        cls_states_BKH=states_BKH,
        cls_gradients_BKVH=None
        if cls_BKVH is None
        else unit_rows(pick_views(cls_BKVH, classes_BV, views_BV))[0],
        embedding_gradient_BLVH=unit_BLVH,
        embedding_gradient_norm_BLV=norm_BLV,
        attribution_BLC=attribution,
        noisy_logits_BDC=noisy,
    )


def _repeated(rows: int, at_least: int, device: torch.device) -> Tensor:
    return torch.arange(max(at_least, rows), device=device) % rows


def _fill_up(values_BL: Tensor, *, rows: int, length: int) -> Tensor:
    """``values_BL`` with at least ``rows`` rows, which repeat, of at least ``length`` positions.

    The new positions hold 0, a token that every vocabulary has and, in the mask, one that nobody attends to.
    """
    index = _repeated(len(values_BL), rows, values_BL.device)
    return functional.pad(values_BL[index], (0, max(0, length - values_BL.shape[1])))


def _cut(values: Tensor | None, rows: int, length: int) -> Tensor | None:
    return None if values is None else values[:rows, :length]


def describe_model(parts: EncoderParts) -> dict[str, Any]:
    """What the run's summary says of a teacher."""
    return {"parameters": sum(parameter.numel() for parameter in parts.model.parameters())}

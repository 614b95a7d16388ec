"""From a teacher model and token ids to the signal: a pure function of the sample (DESIGN, invariant 3)."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from distill_dist.models.encoder import EncoderParts, max_positions
from distill_dist.models.hooks import gradients_at, noisy_logits_BDC, watch_points
from distill_dist.objectives.alignment import unit_rows
from distill_dist.objectives.attribution import attribution_BLC
from distill_dist.objectives.noise import all_noise_BDLH
from distill_dist.objectives.signal import differentiated_BV, margins_BV, pick_views, signal_classes_BV
from distill_dist.records import Inputs, SignalSpec, TeacherSignal

# Part of every key of a stored row. Raise it with any change of the bits that `compute_signal` returns for the
# same teacher, spec and tokens, here or in the hooks, margins, attribution and noise that it calls: rows that
# older code stored must not answer for newer code.
SIGNAL_VERSION = 2

# CPU kernels change the last bits of a row below 16 rows or 16 positions, the width of their vectors (AVX-512), and
# where the positions do not fill their unrolled sums: 4 do on an Intel machine, 8 not on an AMD one, 16 on both.
# tests/unit/teacher/test_compute.py sees it.
MIN_ROWS = MIN_LENGTH = LENGTH_STEP = 16


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
    length_step: int = LENGTH_STEP,
) -> TeacherSignal:
    """The signal of a frozen teacher in eval mode for rows of token ids.

    ``labels_B`` is read where ``spec.needs_labels``. At least ``min_rows`` rows are run, of a multiple of
    ``length_step`` positions, at least ``min_length``; rows repeat and padding grows to fill up.
    """
    rows, length = input_ids_BL.shape
    padded = min(
        -(-max(length, min_length) // length_step) * length_step, max_positions(teacher.model.config)
    )
    ids_BL, mask_BL, types_BL = (
        _fill_up(values_BL, rows=min_rows, length=padded)
        for values_BL in (input_ids_BL, attention_mask_BL, token_type_ids_BL)
    )
    inputs = (ids_BL, mask_BL, types_BL)
    if labels_B is not None:
        labels_B = labels_B[_repeated(len(labels_B), min_rows, labels_B.device)]
    whole = _signal(teacher, inputs, spec, labels_B)
    return TeacherSignal(
        logits_BC=whole.logits_BC[:rows],
        cls_states_BKH=_cut(whole.cls_states_BKH, rows),
        cls_state_norm_BK=_cut(whole.cls_state_norm_BK, rows),
        cls_gradients_BKVH=_cut(whole.cls_gradients_BKVH, rows),
        cls_gradient_norm_BKV=_cut(whole.cls_gradient_norm_BKV, rows),
        embedding_gradient_BLVH=_cut(whole.embedding_gradient_BLVH, rows, length),
        embedding_gradient_norm_BLV=_cut(whole.embedding_gradient_norm_BLV, rows, length),
        attribution_BLC=_cut(whole.attribution_BLC, rows, length),
        noisy_logits_BDC=_cut(whole.noisy_logits_BDC, rows),
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
    states_BKH = state_norm_BK = cls_unit_BKVH = cls_norm_BKV = None
    attribution = unit_BLVH = norm_BLV = noisy = None
    if spec.cls_states:
        stacked = torch.stack([points.cls_states_BH[layer] for layer in spec.layers], dim=1)
        states_BKH, state_norm_BK = unit_rows(stacked.detach())
    if cls_BKVH is not None:
        cls_unit_BKVH, cls_norm_BKV = unit_rows(pick_views(cls_BKVH, classes_BV, views_BV))
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
        cls_state_norm_BK=state_norm_BK,
        cls_gradients_BKVH=cls_unit_BKVH,
        cls_gradient_norm_BKV=cls_norm_BKV,
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


def _cut(values: Tensor | None, rows: int, length: int | None = None) -> Tensor | None:
    if values is None:
        return None
    return values[:rows] if length is None else values[:rows, :length]


def describe_model(parts: EncoderParts) -> dict[str, Any]:
    """What the run's summary says of a teacher."""
    return {"parameters": sum(parameter.numel() for parameter in parts.model.parameters())}


class NotSane(ValueError):
    """Rows of which a teacher says nothing that is a number. Another process may."""


def check_sane(signal: TeacherSignal) -> None:
    """Raises NotSane, which names them, where any numbers of the signal are not finite; on a device this waits once."""
    asked = {field.name: getattr(signal, field.name) for field in fields(signal)}
    given = {name: values for name, values in asked.items() if values is not None}
    are_finite = torch.stack([torch.isfinite(values).all() for values in given.values()]).tolist()
    faulty = [name for name, is_finite in zip(given, are_finite, strict=True) if not is_finite]
    if faulty:
        words = (name.rpartition("_")[0].removesuffix("_norm").replace("_", " ") for name in faulty)
        raise NotSane(not_finite(", ".join(dict.fromkeys(words))))


def not_finite(what: str) -> str:
    """What is said of numbers that are none."""
    return f"its {what} are not finite: are the weights of teacher.path whole, and their type wide enough?"


def is_out_of_memory(error: Exception) -> bool:
    """Whether fewer rows at once might have been computed; torch on a CPU raises a plain RuntimeError."""
    texts = ("can't allocate memory", "std::bad_alloc")  # of its allocator, and of its containers
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(
        text in str(error) for text in texts
    )

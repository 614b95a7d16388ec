"""METHOD.md §1 written out a second time: float64, one unpadded row after the other, the paper's probability form.

It shares no line with ``distill_dist``: inner points are Hugging Face's own ``output_hidden_states``, the signal is
max softmax, means are sums over plain Python loops.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from tiny_encoders import forward, take_rows
from torch import Tensor

from distill_dist.records import Batch


@dataclass(frozen=True)
class Weights:
    """Which terms the formula has, and its constants."""

    alpha: float = 0.0
    patience: float = 0.0
    embedding: float = 0.0
    cls: float = 0.0
    temperature: float = 1.0
    per_class: bool = False
    teacher_layers: tuple[int, ...] = ()
    student_layers: tuple[int, ...] = ()


@dataclass(frozen=True)
class Row:
    """One model on one row: probabilities' logits [C], [CLS] states [H] and unit gradients."""

    logits_C: Tensor
    states: list[Tensor]
    cls_directions: list[Tensor]
    embedding_directions_LH: Tensor


def row_of(model: Any, row: Batch, layers: tuple[int, ...], *, create_graph: bool) -> Row:
    """Forward and the gradients of max softmax for a single row without padding."""
    output = forward(model, row, output_hidden_states=True)
    points = [output.hidden_states[0], *(output.hidden_states[layer] for layer in layers)]
    signal = output.logits.softmax(dim=-1).max(dim=-1).values.sum()
    found = [g[0] for g in torch.autograd.grad(signal, points, create_graph=create_graph)]
    return Row(
        output.logits[0],
        [_unit(point[0, 0]) for point in points[1:]],
        [_unit(gradient[0]) for gradient in found[1:]],
        _unit(found[0]),
    )


def reference_loss(student: Any, teacher: Any, batch: Batch, weights: Weights) -> Tensor:
    """The objective's value over the real rows of ``batch``; differentiable for the student's parameters."""
    terms = {name: torch.zeros((), dtype=torch.float64) for name in ("ce", "kd", "patience", "e", "cls")}
    tokens = rows = 0
    for place in range(len(batch.ids_B)):
        if not batch.is_real_B[place]:
            continue
        single = take_rows(batch, [place])
        ours = row_of(student, single, weights.student_layers, create_graph=True)
        theirs = row_of(teacher, single, weights.teacher_layers, create_graph=False)
        classes = len(ours.logits_C)
        terms["ce"] = terms["ce"] - ours.logits_C.softmax(0)[single.labels_B[0]].log()
        p = (theirs.logits_C.detach() / weights.temperature).softmax(0)
        q = (ours.logits_C / weights.temperature).softmax(0)
        divergence = weights.temperature**2 * (p * (p / q).log()).sum()
        terms["kd"] = terms["kd"] + divergence / (classes if weights.per_class else 1)
        for s, t in zip(ours.states, theirs.states, strict=True):
            share = (s - t.detach()).square().sum() / (len(ours.states) * len(s))
            terms["patience"] = terms["patience"] + share
        for s, t in zip(ours.cls_directions, theirs.cls_directions, strict=True):
            terms["cls"] = terms["cls"] + 2 * (1 - (s * t).sum())
        cosines_L = (ours.embedding_directions_LH * theirs.embedding_directions_LH).sum(-1)
        terms["e"] = terms["e"] + (2 * (1 - cosines_L)).sum()
        rows, tokens = rows + 1, tokens + len(cosines_L)
    return (
        (1 - weights.alpha) * terms["ce"] / rows
        + weights.alpha * terms["kd"] / rows
        + weights.patience * terms["patience"] / rows
        + weights.embedding * terms["e"] / tokens
        + weights.cls * terms["cls"] / rows
    )


def _unit(rows: Tensor) -> Tensor:
    return rows / rows.norm(dim=-1, keepdim=True)

"""METHOD.md §1 and §6 written out again: float64, one unpadded row after the other, the paper's probability form.

It shares no line with ``distill_dist`` but the noise itself: inner points are Hugging Face's own
``output_hidden_states``, signals are probabilities, means are sums over plain Python loops.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from tiny_encoders import forward, take_rows
from torch import Tensor

from distill_dist.objectives.noise import embedding_noise_BLH
from distill_dist.records import Batch, NoiseSpec


@dataclass(frozen=True)
class Weights:
    """Which terms the formula has, and its constants."""

    alpha: float = 0.0
    patience: float = 0.0
    embedding: float = 0.0
    cls: float = 0.0
    attribution: float = 0.0
    noise: float = 0.0
    temperature: float = 1.0
    per_class: bool = False
    signal: str = "own_max"
    top_k: int = 0
    norm: str = "l2"
    noise_spec: NoiseSpec | None = None
    teacher_layers: tuple[int, ...] = ()
    student_layers: tuple[int, ...] = ()


@dataclass(frozen=True)
class Row:
    """One model on one row: logits [C], [CLS] states [H], raw gradients of every class's probability."""

    logits_C: Tensor
    embedding_LH: Tensor
    states: list[Tensor]
    cls_gradients: list[Tensor]  # per matched layer [C, H]
    embedding_gradients_LCH: Tensor

    @property
    def own_class(self) -> int:
        """What the model predicts."""
        return int(self.logits_C.argmax())

    def cls_directions(self, classes: list[int]) -> list[Tensor]:
        """Per matched layer [V, H]."""
        return [_unit(gradients_CH[classes]) for gradients_CH in self.cls_gradients]

    def embedding_directions_LVH(self, classes: list[int]) -> Tensor:
        """At every token."""
        return _unit(self.embedding_gradients_LCH[:, classes])

    def attribution_LC(self, top_k: int) -> Tensor:
        """METHOD.md §6: of the probability's gradient, for every class."""
        products_LCH = self.embedding_gradients_LCH * self.embedding_LH[:, None]
        kept = top_k or products_LCH.shape[-1]
        saliency_LC = products_LCH.square().sort(dim=-1).values[..., -kept:].sum(-1).sqrt()
        return saliency_LC / saliency_LC.norm(dim=0)


def row_of(model: Any, row: Batch, layers: tuple[int, ...], *, create_graph: bool) -> Row:
    """Forward and the gradients of every class's probability for a single row without padding."""
    seen: list[
        Tensor
    ] = []  # Hugging Face's state 0 is a projection of E where ELECTRA's embeddings are wider
    handle = model.base_model.embeddings.register_forward_hook(lambda *call: seen.append(call[2]))
    output = forward(model, row, output_hidden_states=True)
    handle.remove()
    points = [seen[0], *(output.hidden_states[layer] for layer in layers)]
    found = [
        torch.autograd.grad(p, points, create_graph=create_graph, retain_graph=True)
        for p in output.logits[0].softmax(dim=-1)
    ]
    return Row(
        output.logits[0],
        points[0][0],
        [point[0, 0] for point in points[1:]],
        [torch.stack([of_class[1 + k][0, 0] for of_class in found]) for k in range(len(layers))],
        torch.stack([of_class[0][0] for of_class in found], dim=1),
    )


def noisy_logits(model: Any, row: Batch, spec: NoiseSpec) -> list[Tensor]:
    """Logits [C] of a single row at the embeddings plus each draw of noise."""
    found = []
    for draw in range(spec.draws):
        noise = embedding_noise_BLH(
            row.input_ids_BL, row.attention_mask_BL, width=model.config.hidden_size, spec=spec, draw=draw
        )
        handle = model.base_model.embeddings.register_forward_hook(lambda *call, n=noise: call[2] + n)
        found.append(forward(model, row).logits[0])
        handle.remove()
    return found


def classes_of(signal: str, own: Row, teacher: Row, label: int) -> list[int]:
    """The classes whose gradients are compared, for the model that gave ``own``."""
    if signal == "all_classes":
        return list(range(len(own.logits_C)))
    return [{"own_max": own.own_class, "teacher_max": teacher.own_class, "label": label}[signal]]


def reference_loss(
    student: Any, teacher: Any, batch: Batch, weights: Weights, *, maps_KTS: Tensor | None = None
) -> Tensor:
    """The objective's value over the real rows of ``batch``; differentiable for the student's parameters.

    ``maps_KTS``: A of every matched layer where the widths differ; without it A is the identity.
    """
    names = ("ce", "kd", "patience", "e", "cls", "attribution", "noise")
    terms = {name: torch.zeros((), dtype=torch.float64) for name in names}
    tokens = rows = 0
    for place in range(len(batch.ids_B)):
        if not batch.is_real_B[place]:
            continue
        single = take_rows(batch, [place])
        ours = row_of(student, single, weights.student_layers, create_graph=True)
        theirs = row_of(teacher, single, weights.teacher_layers, create_graph=False)
        label = int(single.labels_B[0])
        terms["ce"] = terms["ce"] - ours.logits_C.softmax(0)[label].log()
        terms["kd"] = terms["kd"] + _divergence(ours.logits_C, theirs.logits_C.detach(), weights)
        for k, (s, t) in enumerate(zip(ours.states, theirs.states, strict=True)):
            mapped = s if maps_KTS is None else maps_KTS[k] @ s
            share = (_unit(mapped) - _unit(t.detach())).square().sum() / (len(ours.states) * len(t))
            terms["patience"] = terms["patience"] + share
        classes = [classes_of(weights.signal, model, theirs, label) for model in (ours, theirs)]
        at_cls = zip(ours.cls_directions(classes[0]), theirs.cls_directions(classes[1]), strict=True)
        for k, (s, t) in enumerate(at_cls):
            pulled = t if maps_KTS is None else _unit(t @ maps_KTS[k])
            terms["cls"] = terms["cls"] + 2 * (1 - (s * pulled.detach()).sum(-1)).mean()
        ours_LVH = ours.embedding_directions_LVH(classes[0])
        if weights.embedding:
            theirs_LVH = theirs.embedding_directions_LVH(classes[1]).detach()
            terms["e"] = terms["e"] + (2 * (1 - (ours_LVH * theirs_LVH).sum(-1))).mean(-1).sum()
        terms["attribution"] = terms["attribution"] + _attribution(ours, theirs, weights)
        if weights.noise:
            assert weights.noise_spec is not None
            draws = [noisy_logits(model, single, weights.noise_spec) for model in (student, teacher)]
            found = [_divergence(s, t.detach(), weights) for s, t in zip(*draws, strict=True)]
            terms["noise"] = terms["noise"] + torch.stack(found).mean()
        rows, tokens = rows + 1, tokens + len(ours_LVH)
    return (
        (1 - weights.alpha) * terms["ce"] / rows
        + weights.alpha * terms["kd"] / rows
        + weights.patience * terms["patience"] / rows
        + weights.embedding * terms["e"] / tokens
        + weights.cls * terms["cls"] / rows
        + weights.attribution * terms["attribution"] / rows
        + weights.noise * terms["noise"] / rows
    )


def _divergence(ours_C: Tensor, theirs_C: Tensor, weights: Weights) -> Tensor:
    p = (theirs_C / weights.temperature).softmax(0)
    q = (ours_C / weights.temperature).softmax(0)
    divergence = weights.temperature**2 * (p * (p / q).log()).sum()
    return divergence / (len(ours_C) if weights.per_class else 1)


def _attribution(ours: Row, theirs: Row, weights: Weights) -> Tensor:
    difference_LC = ours.attribution_LC(weights.top_k) - theirs.attribution_LC(weights.top_k).detach()
    distances_LC = difference_LC.abs() if weights.norm == "l1" else difference_LC.square()
    return distances_LC.sum(0).mean()


def _unit(rows: Tensor) -> Tensor:
    return rows / rows.norm(dim=-1, keepdim=True)

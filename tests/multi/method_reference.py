"""What training should do, written from METHOD.md §1 in plain PyTorch: one process, whole global batches, no hooks.

Nothing of distill_dist is imported. The signal is the paper's probability, not the margin: in float64 it does
not saturate here, and the directions must be the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import normalize
from transformers import AutoModelForSequenceClassification

from multi.engine_world import GLOBAL_BATCH, RATE, STUDENT_LAYERS, TEACHER_LAYERS, Case, Row, Rows

ALPHA, TAU, PATIENCE = 0.5, 5.0, 100.0
GRADIENT = {"gkd": 0.5, "gkd_cls": 0.1}


@dataclass(frozen=True)
class Trajectory:
    """Five steps of SGD: per step the loss, the gradient before clipping and its norm; and the weights after all."""

    losses: list[float]
    norms: list[float]
    gradients: list[dict[str, Tensor]]
    start: dict[str, Tensor]
    end: dict[str, Tensor]


@dataclass(frozen=True)
class _Seen:
    logits: Tensor
    cls_states: Tensor  # [B, K, H]
    at_embedding: Tensor  # [B, L, H]
    at_cls: Tensor  # [B, K, H]


def train(case: Case, rows: Rows, models: Path, dtype: torch.dtype) -> Trajectory:
    """Train the student on global batches in row order with everything in ``dtype``."""
    teacher, student = (
        AutoModelForSequenceClassification.from_pretrained(
            models / name, dtype=dtype, attn_implementation="eager"
        ).eval()
        for name in ("teacher", "student")
    )
    # everything gets a gradient, or the embedding's output would have no graph; not everything is updated
    trained = {
        name: parameter
        for name, parameter in student.named_parameters()
        if not (case.frozen and ".embeddings." in name)
    }
    start = {name: weight.detach().clone() for name, weight in trained.items()}
    losses, norms, gradients = [], [], []
    for first in range(0, rows.num_rows, GLOBAL_BATCH):
        loss = _loss(case.method, student, teacher, rows.rows[first : first + GLOBAL_BATCH])
        found = torch.autograd.grad(loss, list(trained.values()), allow_unused=True)
        # the pooler of an unused position, the gradient of an unused word: zero
        by_name = {
            name: torch.zeros_like(weight) if gradient is None else gradient
            for (name, weight), gradient in zip(trained.items(), found, strict=True)
        }
        norm = float(torch.cat([gradient.flatten() for gradient in by_name.values()]).norm())
        scale = min(1.0, case.clip_norm / norm) if case.clip_norm else 1.0
        with torch.no_grad():
            for name, weight in trained.items():
                decay = case.weight_decay if weight.ndim >= 2 else 0.0
                weight -= RATE * (scale * by_name[name] + decay * weight)
        losses.append(float(loss.detach()))
        norms.append(norm)
        gradients.append(by_name)
    return Trajectory(losses, norms, gradients, start, {name: w.detach() for name, w in trained.items()})


def _loss(method: str, student: torch.nn.Module, teacher: torch.nn.Module, rows: Sequence[Row]) -> Tensor:
    longest = max(len(row.input_ids) for row in rows)
    ids = torch.zeros(len(rows), longest, dtype=torch.int64)
    mask, segments = torch.zeros_like(ids), torch.zeros_like(ids)
    for place, row in enumerate(rows):
        length = len(row.input_ids)
        ids[place, :length] = torch.from_numpy(row.input_ids)
        segments[place, :length] = torch.from_numpy(row.token_type_ids)
        mask[place, :length] = 1
    inputs = {"input_ids": ids, "attention_mask": mask, "token_type_ids": segments}
    ours = _see(student, inputs, STUDENT_LAYERS, create_graph=True)
    theirs = _see(teacher, inputs, TEACHER_LAYERS, create_graph=False)

    labels = torch.tensor([row.label for row in rows])
    cross_entropy = -ours.logits.log_softmax(-1)[torch.arange(len(rows)), labels].mean()
    p_teacher, p_student = (theirs.logits.detach() / TAU).softmax(-1), (ours.logits / TAU).softmax(-1)
    kd = TAU**2 * (p_teacher * (p_teacher.log() - p_student.log())).sum(-1).mean()
    if method in GRADIENT:
        kd = kd / ours.logits.shape[-1]  # the paper's scale
    loss = (1 - ALPHA) * cross_entropy + ALPHA * kd
    if method in ("pkd", "gkd_cls"):
        difference = normalize(ours.cls_states, dim=-1) - normalize(theirs.cls_states.detach(), dim=-1)
        loss = loss + PATIENCE * difference.square().mean()
    if method in GRADIENT:
        real = mask.bool()
        aligned = _distance(ours.at_embedding[real], theirs.at_embedding[real]).mean()
        if method == "gkd_cls":
            aligned = aligned + _distance(ours.at_cls, theirs.at_cls).sum(dim=1).mean()
        loss = loss + GRADIENT[method] * aligned
    return loss


def _see(
    model: torch.nn.Module, inputs: dict[str, Tensor], layers: tuple[int, ...], *, create_graph: bool
) -> _Seen:
    output = model(**inputs, output_hidden_states=True)
    states = output.hidden_states  # the embedding's output, then one per layer
    signal = output.logits.softmax(-1).amax(-1).sum()
    at_embedding, *at_layers = torch.autograd.grad(
        signal,
        [states[0], *(states[layer] for layer in layers)],
        create_graph=create_graph,
        retain_graph=True,
    )
    return _Seen(
        logits=output.logits,
        cls_states=torch.stack([states[layer][:, 0] for layer in layers], dim=1),
        at_embedding=at_embedding,
        at_cls=torch.stack([gradient[:, 0] for gradient in at_layers], dim=1),
    )


def _distance(ours: Tensor, theirs: Tensor) -> Tensor:
    return (
        (normalize(ours, dim=-1, eps=1e-30) - normalize(theirs.detach(), dim=-1, eps=1e-30)).square().sum(-1)
    )

"""One term of the objective at a time: its values for every row, or token, of a micro-batch (METHOD.md §1, §6)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from distill_dist.objectives.alignment import direction_distance, patience_B
from distill_dist.objectives.attribution import attribution_distance_B
from distill_dist.objectives.divergences import cross_entropy_B, distillation_B
from distill_dist.objectives.noise import noisy_distillation_B
from distill_dist.records import Batch, StudentOutput, TeacherSignal


class Settings(Protocol):
    """What the terms read of an Objective."""

    @property
    def temperature(self) -> float:
        """Of both models' logits in distillation."""

    @property
    def kd_per_class(self) -> bool:
        """Whether distillation is divided by the number of classes."""

    @property
    def attribution_norm(self) -> str:
        """`l2` or `l1`."""


@dataclass(frozen=True)
class Term:
    """Values of one term, which of them count, and where there was no direction to compare."""

    values: Tensor
    counted: Tensor
    no_direction: Tensor | None = None
    members: tuple[Term, ...] = ()  # of each teacher, where they are separate

    @property
    def mean_parts(self) -> tuple[Tensor, Tensor]:
        """(sum, count) of the values that count, detached."""
        return self.summed(1.0).detach(), self.counted.sum()

    def summed(self, scale: float, weights_B: Tensor | None = None) -> Tensor:
        """``scale`` · Σ of the values that count, each times its row's weight where rows have one."""
        values = self.values.masked_fill(~self.counted, 0.0)
        if weights_B is not None:
            values = values * weights_B.view(-1, *[1] * (values.ndim - 1))
        return values.sum() if scale == 1 else values.sum() * scale


def _cross_entropy(this: Settings, student: StudentOutput, teacher: TeacherSignal, batch: Batch) -> Term:
    return Term(cross_entropy_B(student.logits_BC, batch.labels_B), batch.is_real_B)


def _distillation(this: Settings, student: StudentOutput, teacher: TeacherSignal, batch: Batch) -> Term:
    values_B = distillation_B(
        student.logits_BC,
        teacher.logits_BC,
        temperature=this.temperature,
        per_class=this.kd_per_class,
    )
    return Term(values_B, batch.is_real_B)


def _noisy(this: Settings, student: StudentOutput, teacher: TeacherSignal, batch: Batch) -> Term:
    assert student.noisy_logits_BDC is not None
    assert teacher.noisy_logits_BDC is not None
    values_B = noisy_distillation_B(
        student.noisy_logits_BDC,
        teacher.noisy_logits_BDC,
        temperature=this.temperature,
        per_class=this.kd_per_class,
    )
    return Term(values_B, batch.is_real_B)


def _patience(this: Settings, student: StudentOutput, teacher: TeacherSignal, batch: Batch) -> Term:
    assert student.cls_states_BKH is not None
    assert teacher.cls_states_BKH is not None
    return Term(patience_B(student.cls_states_BKH, teacher.cls_states_BKH), batch.is_real_B)


def _gradient_embedding(this: Settings, student: StudentOutput, teacher: TeacherSignal, batch: Batch) -> Term:
    assert student.embedding_gradient_BLVH is not None
    assert teacher.embedding_gradient_BLVH is not None
    distance_BLV, zero_BLV = direction_distance(
        student.embedding_gradient_BLVH, teacher.embedding_gradient_BLVH
    )
    real_BL = batch.attention_mask_BL.bool() & batch.is_real_B[:, None]
    return Term(distance_BLV.mean(dim=-1), real_BL, zero_BLV.any(dim=-1))


def _gradient_cls(this: Settings, student: StudentOutput, teacher: TeacherSignal, batch: Batch) -> Term:
    assert student.cls_gradients_BKVH is not None
    assert teacher.cls_gradients_BKVH is not None
    distance_BKV, zero_BKV = direction_distance(student.cls_gradients_BKVH, teacher.cls_gradients_BKVH)
    return Term(distance_BKV.mean(dim=-1).sum(dim=1), batch.is_real_B, zero_BKV.any(dim=-1).any(dim=-1))


def _attribution(this: Settings, student: StudentOutput, teacher: TeacherSignal, batch: Batch) -> Term:
    assert student.attribution_BLC is not None
    assert teacher.attribution_BLC is not None
    values_B, zero_B = attribution_distance_B(
        student.attribution_BLC, teacher.attribution_BLC, norm=this.attribution_norm
    )
    return Term(values_B, batch.is_real_B, zero_B)


TERMS: dict[str, Callable[[Settings, StudentOutput, TeacherSignal, Batch], Term]] = {
    "cross_entropy": _cross_entropy,
    "distillation": _distillation,
    "patience": _patience,
    "gradient_embedding": _gradient_embedding,
    "gradient_cls": _gradient_cls,
    "attribution": _attribution,
    "noisy_distillation": _noisy,
}

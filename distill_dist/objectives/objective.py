"""The objective of every method: weighted terms, each a sum with its own global count (METHOD.md §1)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from distill_dist.objectives.alignment import direction_distance, patience_B
from distill_dist.objectives.divergences import cross_entropy_B, distillation_B
from distill_dist.records import Batch, BatchCounts, SignalSpec, StudentOutput, TeacherSignal


@dataclass(frozen=True)
class Terms:
    """Which terms a method has beside cross-entropy."""

    distillation: bool = False
    patience: bool = False
    embedding_gradient: bool = False
    cls_gradients: bool = False


METHODS = {
    "finetune": Terms(),
    "kd": Terms(distillation=True),
    "pkd": Terms(distillation=True, patience=True),
    "gkd": Terms(distillation=True, embedding_gradient=True),
    "gkd_cls": Terms(distillation=True, patience=True, embedding_gradient=True, cls_gradients=True),
}


@dataclass(frozen=True)
class LossTerms:
    """Sums of one micro-batch, not yet divided; ``weights`` and ``per_token`` say how they add up."""

    sums: dict[str, Tensor]
    zero_rows: Tensor  # real tokens or sequences whose gradient has no direction: an error
    weights: dict[str, float]

    def total(self, counts: BatchCounts) -> Tensor:
        """This micro-batch's share of the global batch's loss: Σ weight · sum / global count."""
        shares = [self.weights[name] * value / count_of(name, counts) for name, value in self.sums.items()]
        return torch.stack(shares).sum()


def count_of(term: str, counts: BatchCounts) -> int:
    """What the sum of ``term`` is divided by: real tokens for the embedding gradient, else sequences."""
    return counts.tokens if term == "gradient_embedding" else counts.sequences


@dataclass(frozen=True)
class Objective:
    """One method with its weights; terms of weight zero are not computed."""

    terms: Terms
    kd: float = 0.5  # α: share of the teacher's logits
    patience: float = 100.0
    gradient: float = 0.1
    temperature: float = 5.0
    kd_per_class: bool = False
    teacher_layers: tuple[int, ...] = ()
    student_layers: tuple[int, ...] = ()

    @property
    def weights(self) -> dict[str, float]:
        """Weight of every term by its name in logs; terms of weight zero are left out.

        Cross-entropy gets what distillation leaves of 1.
        """
        alpha = self.kd if self.terms.distillation else 0.0
        found = {
            "cross_entropy": 1.0 - alpha,
            "distillation": alpha,
            "patience": self.patience if self.terms.patience else 0.0,
            "gradient_embedding": self.gradient if self.terms.embedding_gradient else 0.0,
            "gradient_cls": self.gradient if self.terms.cls_gradients else 0.0,
        }
        return {name: weight for name, weight in found.items() if weight != 0.0}

    @property
    def signal_spec(self) -> SignalSpec | None:
        """What the teacher has to send; None where nobody has to teach."""
        names = self.weights.keys() - {"cross_entropy"}
        if not names:
            return None
        needs_cls = bool(names & {"patience", "gradient_cls"})
        return SignalSpec(
            layers=self.teacher_layers if needs_cls else (),
            cls_states="patience" in names,
            cls_gradients="gradient_cls" in names,
            embedding_gradient="gradient_embedding" in names,
        )

    def __call__(self, student: StudentOutput, teacher: TeacherSignal | None, batch: Batch) -> LossTerms:
        """Sums of every term over the real rows of ``batch``; ``teacher`` may be None for ``finetune``."""
        weights = self.weights
        real_B = batch.is_real_B
        zero_rows = torch.zeros((), device=real_B.device)
        sums: dict[str, Tensor] = {}

        def add(name: str, value: Tensor, where: Tensor) -> None:
            sums[name] = value.masked_fill(~where, 0.0).sum()

        if "cross_entropy" in weights:
            add("cross_entropy", cross_entropy_B(student.logits_BC, batch.labels_B), real_B)
        if teacher is None:
            return LossTerms(sums, zero_rows, weights)
        if "distillation" in weights:
            values_B = distillation_B(
                student.logits_BC,
                teacher.logits_BC,
                temperature=self.temperature,
                per_class=self.kd_per_class,
            )
            add("distillation", values_B, real_B)
        if "patience" in weights:
            assert student.cls_states_BKH is not None
            assert teacher.cls_states_BKH is not None
            add("patience", patience_B(student.cls_states_BKH, teacher.cls_states_BKH), real_B)
        if "gradient_embedding" in weights:
            assert student.embedding_gradient_BLH is not None
            assert teacher.embedding_gradient_BLH is not None
            real_BL = batch.attention_mask_BL.bool() & real_B[:, None]
            distance_BL, zero_BL = direction_distance(
                student.embedding_gradient_BLH, teacher.embedding_gradient_BLH
            )
            add("gradient_embedding", distance_BL, real_BL)
            zero_rows = zero_rows + (zero_BL & real_BL).sum()
        if "gradient_cls" in weights:
            assert student.cls_gradients_BKH is not None
            assert teacher.cls_gradients_BKH is not None
            distance_BK, zero_BK = direction_distance(student.cls_gradients_BKH, teacher.cls_gradients_BKH)
            add("gradient_cls", distance_BK.sum(dim=1), real_B)
            zero_rows = zero_rows + (zero_BK & real_B[:, None]).sum()
        return LossTerms(sums, zero_rows, weights)

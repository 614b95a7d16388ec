"""The objective of every method: weighted terms, each a sum with its own global count (METHOD.md §1)."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from distill_dist.objectives.terms import TERMS, Term
from distill_dist.records import (
    Batch,
    BatchCounts,
    JoinedSignal,
    NoiseSpec,
    SignalSpec,
    StudentOutput,
    TeacherSignal,
)


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

# Terms that are functions of the student's own gradients.
ALIGNED = ("gradient_embedding", "gradient_cls", "attribution")
# The two that share one weight of 1 between them: λ, or α, is distillation's.
SHARED = ("cross_entropy", "distillation")
# PT and G of METHOD.md §4: what `reliance.scale_alignment` scales; attribution and noise keep their weight.
SCALED = ("patience", "gradient_embedding", "gradient_cls")


@dataclass(frozen=True)
class LossTerms:
    """Sums of one micro-batch, not yet divided; ``weights`` and ``count_of`` say how they add up.

    ``sums`` are plain, so that runs can be compared. Where rows weigh differently (λ per row), ``row_weighted``
    has the sum that stands in the loss instead. ``surrogate`` is a scalar of which only the gradient counts: that
    of the aligned terms through the student's gradients, already weighted and divided (``central_difference``).
    """

    sums: dict[str, Tensor]
    zero_rows: Tensor  # real tokens or sequences whose gradient has no direction: an error
    weights: dict[str, float]
    surrogate: Tensor | None = None
    row_weighted: dict[str, Tensor] = field(default_factory=dict)
    logits_BC: Tensor | None = None  # the student's, detached: its scores may be logged as rows are served
    # Tag -> (sum, count) of each teacher's own part where terms are separate; detached, unweighted, to be looked at.
    of_teachers: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def total(self, counts: BatchCounts) -> Tensor:
        """This micro-batch's share of the global batch's loss: Σ weight · sum / global count."""
        total = self.share_of(tuple(self.sums), counts)
        if self.surrogate is not None:
            total = total + (self.surrogate - self.surrogate.detach())
        return total

    def share_of(self, names: tuple[str, ...], counts: BatchCounts) -> Tensor:
        """The share of some terms alone; 0 where none of them is there."""
        shares = [
            self.weights[name] * self.row_weighted.get(name, value) / count_of(name, counts)
            for name, value in self.sums.items()
            if name in names
        ]
        return torch.stack(shares).sum() if shares else torch.zeros(())


def count_of(term: str, counts: BatchCounts) -> int:
    """What the sum of ``term`` is divided by: real tokens for the embedding gradient, else sequences."""
    return counts.tokens if term == "gradient_embedding" else counts.sequences


def teacher_tag(term: str, teacher: int) -> str:
    """Under which ``term`` against the teacher of that number, from 0, is shown."""
    return f"loss/{term}/teacher_{teacher}"


@dataclass(frozen=True)
class Objective:
    """One method with its weights; terms of weight zero are not computed.

    With ``per_row`` batches may bring λ per row (METHOD.md §4), and ``kd`` is for those that bring none.
    """

    terms: Terms
    kd: float = 0.5  # α: share of the teacher's logits
    patience: float = 100.0
    gradient: float = 0.1
    attribution: float = 0.0
    noise: float = 0.0
    temperature: float = 5.0
    kd_per_class: bool = False
    signal: str = "own_max"
    attribution_top_k: int = 0
    attribution_norm: str = "l2"
    noise_spec: NoiseSpec | None = None
    teacher_layers: tuple[int, ...] = ()
    student_layers: tuple[int, ...] = ()
    per_row: bool = False
    scale_alignment: float | None = None  # λ_max: a row's patience and gradient terms weigh λ/λ_max
    # Of several teachers whose terms are separate (TeacherSignal.members); they sum to 1.
    teacher_weights: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        """λ is a share of the teacher's logits, and nothing is scaled by it where there is none."""
        assert self.terms.distillation or not self.per_row
        assert self.scale_alignment is None or (self.per_row and self.scale_alignment > 0)

    @property
    def weights(self) -> dict[str, float]:
        """Weight of every term by its name in logs; terms of weight zero are left out.

        Cross-entropy gets what distillation leaves of 1; both are there where rows decide.
        """
        alpha = self.kd if self.terms.distillation else 0.0
        found = {
            "cross_entropy": 1.0 - alpha,
            "distillation": alpha,
            "patience": self.patience if self.terms.patience else 0.0,
            "gradient_embedding": self.gradient if self.terms.embedding_gradient else 0.0,
            "gradient_cls": self.gradient if self.terms.cls_gradients else 0.0,
            "attribution": self.attribution,
            "noisy_distillation": self.noise,
        }
        always = SHARED if self.per_row else ()
        return {name: weight for name, weight in found.items() if weight != 0.0 or name in always}

    @property
    def is_aligned(self) -> bool:
        """Whether the student's own gradients are trained, so that it is differentiated twice."""
        return bool(self.weights.keys() & set(ALIGNED))

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
            # kd reads no class and attribution all: what they ask for, and cache, is the same for every signal
            signal=self.signal if names & {"gradient_embedding", "gradient_cls"} else SignalSpec.signal,
            attribution_top_k=self.attribution_top_k if "attribution" in names else None,
            noise=self.noise_spec if "noisy_distillation" in names else None,
        )

    def __call__(
        self,
        student: StudentOutput,
        teacher: TeacherSignal | None,
        batch: Batch,
        *,
        names: tuple[str, ...] | None = None,
    ) -> LossTerms:
        """Sums of every term over the real rows of ``batch``; ``teacher`` may be None for ``finetune``.

        Without ``batch.reliance_B`` every row has the constant weights. With ``names`` of those terms alone, for
        which ``student`` must hold what they compare.
        """
        weights, weights_B = self.weights, self._row_weights(batch)
        if weights_B:
            weights = weights | dict.fromkeys(SHARED, 1.0)
        sums: dict[str, Tensor] = {}
        row_weighted: dict[str, Tensor] = {}
        of_teachers: dict[str, tuple[Tensor, Tensor]] = {}
        zero_rows = torch.zeros((), device=batch.is_real_B.device)
        for name in weights:
            if (teacher is None and name != "cross_entropy") or (names is not None and name not in names):
                continue
            if name in ALIGNED and batch.alignment == 0:
                continue
            found = self._term(name, student, teacher, batch)
            scale = batch.alignment if name in ALIGNED else 1.0
            sums[name] = found.summed(scale)
            if name in weights_B:
                row_weighted[name] = found.summed(scale, weights_B[name])
            of_teachers |= {teacher_tag(name, n): each.mean_parts for n, each in enumerate(found.members)}
            if found.no_direction is not None:
                zero_rows = zero_rows + (found.no_direction & found.counted).sum()
        return LossTerms(
            sums,
            zero_rows,
            weights,
            row_weighted=row_weighted,
            logits_BC=student.logits_BC.detach(),
            of_teachers=of_teachers,
        )

    @property
    def teacher_tags(self) -> tuple[str, ...]:
        """Tags of ``LossTerms.of_teachers``; none where terms are not separate."""
        names = [name for name in self.weights if name != "cross_entropy"]
        return tuple(teacher_tag(name, n) for name in names for n in range(len(self.teacher_weights)))

    def _term(self, name: str, student: StudentOutput, teacher: TeacherSignal | None, batch: Batch) -> Term:
        """One term; of several teachers the weighted sum of each one's own (METHOD.md §7)."""
        if not isinstance(teacher, JoinedSignal) or not teacher.members or name == "cross_entropy":
            return TERMS[name](self, student, teacher, batch)  # type: ignore[arg-type]
        parts = [TERMS[name](self, student, member, batch) for member in teacher.members]
        values = [w * part.values for w, part in zip(self.teacher_weights, parts, strict=True)]
        flags = [part.no_direction for part in parts if part.no_direction is not None]
        no_direction = torch.stack(flags).any(dim=0) if flags else None
        return Term(torch.stack(values).sum(dim=0), parts[0].counted, no_direction, tuple(parts))

    def _row_weights(self, batch: Batch) -> dict[str, Tensor]:
        """What every row's part of a term is multiplied by [B], for the terms where rows differ."""
        reliance_B = batch.reliance_B
        if reliance_B is None:
            return {}
        assert self.per_row, "λ per row without Objective.per_row"
        found = {"cross_entropy": 1 - reliance_B, "distillation": reliance_B}
        if self.scale_alignment is not None:
            found |= dict.fromkeys(SCALED, reliance_B / self.scale_alignment)
        return found

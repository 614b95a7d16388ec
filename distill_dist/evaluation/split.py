"""One split, scored over all students: every row once, exact sums, the same numbers on every rank."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from distill_dist.evaluation.metrics import loyalty_summed, task_summed, values_of
from distill_dist.evaluation.saliency import HEADLINE, correlations
from distill_dist.evaluation.summed import Floats, mean_of
from distill_dist.records import Batch, SignalSpec, TeacherSignal

LOGITS = SignalSpec()
SALIENCY = SignalSpec(embedding_gradient=True)

Embed = Callable[[Batch], Tensor]
"""The embedding output E of one model, [B, L, H]."""


class SignalSource(Protocol):
    """A model that answers for batches: the teacher, wherever it is, or the student itself."""

    def signals(
        self,
        items: Iterable[Batch],
        batches_of: Callable[[Batch], Sequence[Batch]],
        spec: SignalSpec,
        *,
        ahead: int,
    ) -> Iterator[tuple[Batch, tuple[TeacherSignal, ...]]]:
        """Every batch with its signal, in order."""
        ...


def _each(batch: Batch) -> tuple[Batch]:
    return (batch,)


@dataclass(frozen=True)
class SplitScorer:
    """Scores models on one split; ``batches`` are this rank's share of its rows, as many on every rank."""

    labels_N: NDArray[np.int32]
    batches: tuple[Batch, ...]
    num_classes: int
    metric: str  # the task's own: `accuracy`, `f1` or `matthews`
    sum_: Callable[[Tensor], Tensor]  # adds a tensor over all students, in place
    device: torch.device
    ahead: int

    def logits_NC(self, source: SignalSource) -> NDArray[np.float64]:
        """Logits of every row of the split in row order; a collective."""
        found = torch.zeros(len(self.labels_N), self.num_classes, dtype=torch.float64)
        add_logits(found, source, self.batches, ahead=self.ahead)
        gathered: NDArray[np.float64] = self.sum_(found.to(self.device)).cpu().numpy()
        return gathered

    def metrics(self, logits_NC: NDArray[np.float64]) -> dict[str, float]:
        """`accuracy`, `loss`, `ece`, and `f1` or `matthews` where the task uses it."""
        return values_of(task_summed(logits_NC, self.labels_N, metric=self.metric))

    @property
    def most_frequent_share(self) -> float:
        """Accuracy of who always says the class that most rows have."""
        return float(np.bincount(self.labels_N).max() / len(self.labels_N))

    def saliency_loyalty(self, student: SignalSource, teacher: SignalSource) -> float:
        """SL: mean Spearman correlation of ‖g_t‖ over the rows of the split; a collective. NaN without any row."""
        return mean_of(self.saliency_rows(student, teacher)[HEADLINE]).value

    def saliency_rows(
        self, student: SignalSource, teacher: SignalSource, *, embeds: tuple[Embed, Embed] | None = None
    ) -> dict[str, Floats]:
        """Correlations of both models' token saliencies, each [N] in row order, NaN for none; a collective.

        `sl_pearson_norm` and `sl_spearman_norm` of ‖g_t‖; with the ``embeds`` of student and teacher also
        `sl_pearson_dot` and `sl_spearman_dot` of g_t·E_t.
        """
        theirs = teacher.signals(self.batches, _each, SALIENCY, ahead=self.ahead)
        ours = student.signals(self.batches, _each, SALIENCY, ahead=self.ahead)
        names = [f"sl_{kind}_{of}" for of in (("norm", "dot") if embeds else ("norm",)) for kind in _KINDS]
        found = torch.zeros(
            2, len(names), len(self.labels_N), dtype=torch.float64
        )  # values, and where there are any
        for (batch, (student_signal,)), (_, (teacher_signal,)) in zip(ours, theirs, strict=True):
            row_of = _correlations(batch, student_signal, teacher_signal, embeds)
            values = torch.stack([torch.from_numpy(row_of[name]) for name in names])[:, batch.is_real_B]
            rows_B = batch.ids_B[batch.is_real_B]
            found[0][:, rows_B] = values.nan_to_num(0.0)
            found[1][:, rows_B] = (~values.isnan()).double()
        values_FN, has_FN = self.sum_(found.to(self.device)).cpu().numpy()
        return {name: np.where(has_FN[n] > 0, values_FN[n], np.nan) for n, name in enumerate(names)}


_KINDS = ("pearson", "spearman")


def _correlations(
    batch: Batch, student: TeacherSignal, teacher: TeacherSignal, embeds: tuple[Embed, Embed] | None
) -> dict[str, Floats]:
    """Every form of the saliency correlation of every row of ``batch`` [B]."""
    mask_BL = batch.attention_mask_BL.bool().cpu().numpy()
    found = correlations(_norms_BL(student), _norms_BL(teacher), mask_BL, of="norm")
    if embeds is not None:
        dots = [
            _dots_BL(signal, embed(batch)) for signal, embed in zip((student, teacher), embeds, strict=True)
        ]
        found |= correlations(dots[0], dots[1], mask_BL, of="dot")
    return found


def _norms_BL(signal: TeacherSignal) -> NDArray[np.float64]:
    assert signal.embedding_gradient_norm_BLV is not None
    return np.asarray(signal.embedding_gradient_norm_BLV[..., 0].double().cpu())


def _dots_BL(signal: TeacherSignal, embedding_BLH: Tensor) -> NDArray[np.float64]:
    """g_t·E_t of every token [B, L]."""
    assert signal.embedding_gradient_BLVH is not None
    unit_BLH = signal.embedding_gradient_BLVH[..., 0, :].double().cpu()
    return _norms_BL(signal) * (unit_BLH * embedding_BLH.double().cpu()).sum(dim=-1).numpy()


def add_logits(
    found_NC: Tensor, source: SignalSource, batches: Iterable[Batch], *, ahead: int, first_row: int = 0
) -> None:
    """Writes into ``found_NC``, from row ``first_row`` on, what ``source`` says of the real rows of ``batches``."""
    for batch, (signal,) in source.signals(batches, _each, LOGITS, ahead=ahead):
        real_B = batch.is_real_B
        logits_BC = signal.logits_BC[real_B.to(signal.logits_BC.device)]
        found_NC[batch.ids_B[real_B] - first_row] = logits_BC.to(found_NC.dtype).cpu()


def loyalty(student_NC: NDArray[np.float64], teacher_NC: NDArray[np.float64]) -> dict[str, float]:
    """`ll` and `pl`: does the student say what its teacher says? (METHOD.md §5)"""
    return values_of(loyalty_summed(student_NC, teacher_NC))

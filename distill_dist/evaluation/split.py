"""One split, scored over all students: every row once, exact sums, the same numbers on every rank."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from distill_dist.evaluation.metrics import label_loyalty, probability_loyalty, task_metrics
from distill_dist.evaluation.saliency import spearman_per_row
from distill_dist.records import Batch, SignalSpec, TeacherSignal

LOGITS = SignalSpec()
SALIENCY = SignalSpec(embedding_gradient=True)


class SignalSource(Protocol):
    """A model that answers for batches: the teacher, wherever it is, or the student itself."""

    def signals(
        self,
        items: Sequence[Batch],
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
    with_f1: bool
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
        """`accuracy`, `loss`, `f1` where the task uses it."""
        return task_metrics(logits_NC, self.labels_N, with_f1=self.with_f1)

    def saliency_loyalty(self, student: SignalSource, teacher: SignalSource) -> float:
        """SL: mean Spearman correlation of ‖g_t‖ over the rows of the split; a collective. NaN without any row."""
        theirs = teacher.signals(self.batches, _each, SALIENCY, ahead=self.ahead)
        ours = student.signals(self.batches, _each, SALIENCY, ahead=self.ahead)
        total = torch.zeros(2, dtype=torch.float64)
        for (batch, (student_signal,)), (_, (teacher_signal,)) in zip(ours, theirs, strict=True):
            assert student_signal.embedding_gradient_norm_BLV is not None
            assert teacher_signal.embedding_gradient_norm_BLV is not None
            values = spearman_per_row(
                student_signal.embedding_gradient_norm_BLV[..., 0],
                teacher_signal.embedding_gradient_norm_BLV[..., 0],
                batch.attention_mask_BL * batch.is_real_B[:, None],
            )
            total += torch.tensor([sum(values), len(values)], dtype=torch.float64)
        value, rows = self.sum_(total.to(self.device)).tolist()
        return value / rows if rows else float("nan")


def add_logits(
    found_NC: Tensor, source: SignalSource, batches: Sequence[Batch], *, ahead: int, first_row: int = 0
) -> None:
    """Writes into ``found_NC``, from row ``first_row`` on, what ``source`` says of the real rows of ``batches``."""
    for batch, (signal,) in source.signals(batches, _each, LOGITS, ahead=ahead):
        real_B = batch.is_real_B
        logits_BC = signal.logits_BC[real_B.to(signal.logits_BC.device)]
        found_NC[batch.ids_B[real_B] - first_row] = logits_BC.to(found_NC.dtype).cpu()


def loyalty(student_NC: NDArray[np.float64], teacher_NC: NDArray[np.float64]) -> dict[str, float]:
    """`ll` and `pl`: does the student say what its teacher says? (METHOD.md §5)"""
    return {"ll": label_loyalty(student_NC, teacher_NC), "pl": probability_loyalty(student_NC, teacher_NC)}

"""Before the first step: is the gradient that this run will train with the gradient of its objective?

The whole way is tried on a few rows, as a step would go it: the route, the kernel, the precision, two micro-batches,
the sharding and its reduction. The reference is plain PyTorch: double backward of an fp32 copy with eager attention.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from distill_dist.comm.students import StudentGroup
from distill_dist.engine import Engine
from distill_dist.objectives.objective import ALIGNED
from distill_dist.records import Batch, BatchCounts, JoinedSignal, TeacherSignal
from distill_dist.student import Route, StudentStep

Record = TypeVar("Record", Batch, TeacherSignal)
# Rows per student: enough for a reduction over rows and ranks, few enough for seconds.
ROWS = 4


@dataclass(frozen=True)
class Probe:
    """What was measured. Errors are L2 norms over all parameters."""

    whole_error: float  # ‖found − reference‖ / ‖reference‖ of the whole objective
    aligned_error: float  # the same difference over the norm of the aligned terms' gradient alone
    seconds: float


def probe(
    engine: Engine,
    student: StudentStep,
    copy: StudentStep,
    batch: Batch,
    signal: TeacherSignal,
    group: StudentGroup,
) -> Probe:
    """Compare the gradients; a collective of all students. Only before the first step: leaves the engine as it was.

    ``copy`` has the student's weights, whole and in fp32; ``signal`` is the teacher's for ``batch``, at most ROWS rows.
    Rows that have a λ of their own get another: theirs may be 0 on all of them, which would prove nothing.
    """
    started = time.perf_counter()
    if batch.reliance_B is not None:
        reliance_B = torch.linspace(0.25, 0.75, len(batch.reliance_B), device=batch.reliance_B.device)
        batch = replace(batch, reliance_B=reliance_B)
    counts = _global_counts(batch, group)
    engine.module.train()
    for last, (half, its_signal) in enumerate(_halves(batch, signal)):
        engine.backward(student.loss_terms(half, its_signal, counts).total(counts), last=bool(last))
    found = engine.reduced_gradients()
    engine.discard_gradient()

    plain = replace(copy, route=Route(), autocast=None)
    parameters = {
        name: p for name, p in plain.parts.model.named_parameters() if p.requires_grad and name in found
    }
    terms = plain.loss_terms(batch, signal, counts)
    aligned = _gradients(terms.share_of(ALIGNED, counts), parameters, keep=True)
    whole = _gradients(terms.total(counts), parameters, keep=False)
    # Squares of: the difference, the reference, the aligned terms' part of it; then this rank's sums are the whole's.
    squares = torch.zeros(3, dtype=torch.float64)
    for name in parameters:
        reference, part = group.sum_(whole[name]), group.sum_(aligned[name])
        difference = found[name].float() - reference
        values = (difference, reference, part)
        squares += torch.stack([value.double().square().sum().cpu() for value in values])
    difference, reference, part = squares.sqrt().tolist()
    return Probe(
        whole_error=_ratio(difference, reference),
        aligned_error=_ratio(difference, part),
        seconds=time.perf_counter() - started,
    )


def first_rows(record: Record, rows: int = ROWS) -> Record:
    """The first rows of a batch or signal, as wide as it is."""
    return _rows(record, slice(0, rows))


def _rows(record: Record, which: slice) -> Record:
    values = {field.name: getattr(record, field.name) for field in fields(record)}
    cut: dict[str, Any] = {name: v[which] for name, v in values.items() if isinstance(v, Tensor)}
    if isinstance(record, JoinedSignal):
        cut["members"] = tuple(_rows(member, which) for member in record.members)
    return replace(record, **cut)


def _halves(batch: Batch, signal: TeacherSignal) -> Iterator[tuple[Batch, TeacherSignal]]:
    """Two micro-batches on every student; of one row the second is a filler, which counts for nothing."""
    middle = (len(batch.labels_B) + 1) // 2
    yield _rows(batch, slice(0, middle)), _rows(signal, slice(0, middle))
    rest = slice(middle, None) if middle < len(batch.labels_B) else slice(0, 1)
    second = _rows(batch, rest)
    if rest.stop is not None:
        second = replace(second, is_real_B=torch.zeros_like(second.is_real_B))
    yield second, _rows(signal, rest)


def _global_counts(batch: Batch, group: StudentGroup) -> BatchCounts:
    real_BL = batch.attention_mask_BL * batch.is_real_B[:, None]
    counts = torch.stack([batch.is_real_B.sum(), real_BL.sum()]).to(torch.float64)
    sequences, tokens = group.sum_(counts).tolist()
    return BatchCounts(sequences=int(sequences), tokens=int(tokens))


def _gradients(loss: Tensor, parameters: dict[str, torch.nn.Parameter], *, keep: bool) -> dict[str, Tensor]:
    found = torch.autograd.grad(loss, list(parameters.values()), retain_graph=keep, allow_unused=True)
    return {
        name: torch.zeros_like(parameter) if gradient is None else gradient.detach().clone()
        for (name, parameter), gradient in zip(parameters.items(), found, strict=True)
    }


def _ratio(value: float, norm: float) -> float:
    """``value`` / ``norm``; infinite where either is not finite or the norm is 0: nothing was proved."""
    if not math.isfinite(value) or not math.isfinite(norm) or norm == 0:
        return math.inf
    return value / norm

"""What a student asks its teacher, wherever that is; and the teacher inside the student's own process."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol, TypeVar

import torch

from distill_dist.errors import Interrupted
from distill_dist.models.encoder import EncoderParts
from distill_dist.records import Batch, SignalSpec, TeacherSignal
from distill_dist.teacher.compute import compute_signal, describe_model

T = TypeVar("T")


class TeacherLost(Interrupted):
    """No teacher answers any more."""

    def __init__(self, reason: str) -> None:
        """Say what happened."""
        super().__init__(f"lost its teacher: {reason}")


class Teacher(Protocol):
    """Where signals come from; the numbers do not depend on which."""

    @property
    def waited_s(self) -> float:
        """Seconds this student spent waiting for signals so far."""
        ...

    def signals(
        self, items: Iterable[T], batches_of: Callable[[T], Sequence[Batch]], spec: SignalSpec, *, ahead: int
    ) -> Iterator[tuple[T, tuple[TeacherSignal, ...]]]:
        """Every item with the signals of its batches, in order; up to ``ahead`` items are asked for in advance."""
        ...

    def describe(self) -> dict[str, Any]:
        """The teacher's own figures: `parameters`; of one in other processes `row_difference` (RowComputer)."""
        ...

    def wire(self, spec: SignalSpec, tokens: float) -> tuple[dict[str, float], ...]:
        """What a row of ``tokens`` real tokens in answer to ``spec`` costs on its way, for each model: `bytes_per_row`,
        and per kind of its unit rows the mean of 1 − cosine that the wire's types cost. Empty where nothing travels.
        """
        ...

    def counters(self) -> dict[str, dict[str, int]]:
        """What teachers in other processes did so far, by their names."""
        ...

    def release(self, *, timeout_s: float, early: bool = False) -> bool:
        """Nothing more will be asked; whether every teacher heard it, for which it waits ``timeout_s`` at most.

        ``early``: the run stopped before its end, so no other student will ask either, alive or dead.
        """
        ...


def spec_of(batch: Batch, spec: SignalSpec) -> SignalSpec:
    """What ``batch`` asks for, when its aligned rows ask for ``spec``."""
    return spec if batch.alignment > 0 else spec.without_gradients


class LocalTeacher:
    """The teacher inside the student's own process (`cluster.teachers: 0`)."""

    def __init__(self, parts: EncoderParts, device: torch.device, *, is_student: bool = False) -> None:
        """``parts`` of a model in eval mode on ``device``. ``is_student``: of the student itself, which answers as a
        teacher does, but for the tokens that it reads."""
        self._parts, self._device, self._is_student = parts, device, is_student
        self.waited_s = 0.0

    def signals(
        self, items: Iterable[T], batches_of: Callable[[T], Sequence[Batch]], spec: SignalSpec, *, ahead: int
    ) -> Iterator[tuple[T, tuple[TeacherSignal, ...]]]:
        """See Teacher; computes when asked, so nothing is ever ahead."""
        for item in items:
            start = time.perf_counter()
            found = tuple(self._compute(batch.to(self._device), spec) for batch in batches_of(item))
            self.waited_s += time.perf_counter() - start
            yield item, found

    def describe(self) -> dict[str, Any]:
        """See Teacher."""
        return describe_model(self._parts)

    def wire(self, spec: SignalSpec, tokens: float) -> tuple[dict[str, float], ...]:
        """See Teacher; nothing travels."""
        return ()

    def counters(self) -> dict[str, dict[str, int]]:
        """See Teacher; there are none."""
        return {}

    def release(self, *, timeout_s: float, early: bool = False) -> bool:
        """See Teacher."""
        return True

    def _compute(self, batch: Batch, spec: SignalSpec) -> TeacherSignal:
        spec = spec_of(batch, spec)
        labels_B = batch.labels_B if spec.needs_labels else None
        inputs = batch.inputs if self._is_student else batch.teacher_inputs
        return compute_signal(self._parts, *inputs, spec, labels_B=labels_B)

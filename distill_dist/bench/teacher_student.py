"""A student's steps with signals ready and with signals from a service, in turns, so that a slow minute hits both."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from distill_dist.bench.distillation_cases import Case, Setting
from distill_dist.bench.gradients import run_step
from distill_dist.bench.teacher_store import as_variant
from distill_dist.models.build import set_attention
from distill_dist.records import Batch, SignalSpec, TeacherSignal
from distill_dist.student import StudentStep
from distill_dist.teacher.client import RemoteTeacher


@dataclass(frozen=True)
class Block:
    """A mean step: seconds; on the student's processor; and waiting for signals, decoding included.

    ``computed``: rows that hosts computed meanwhile over those that the steps used.
    """

    seconds: float
    cpu_s: float
    waited_s: float = 0.0
    computed: float = 0.0


class MeasuredStudent:
    """GKD-CLS by double backward; the optimizer is left out, it does not depend on where signals come from."""

    def __init__(self, setting: Setting) -> None:
        """Of ``setting``'s student and cases."""
        set_attention(setting.student.model, "eager")
        self._step = StudentStep(setting.student, setting.objective)
        self._cases = setting.cases

    def _run(self, case: Case) -> None:
        run_step(self._step, case)
        self._step.parts.model.zero_grad(set_to_none=True)

    def step_s(self, repeats: int) -> list[float]:
        """Seconds of every case's step, signals ready: medians; after a warm-up."""
        self._run(self._cases[-1])
        found: list[list[float]] = [[] for _ in self._cases]
        for _ in range(repeats):
            for case, seconds in zip(self._cases, found, strict=True):
                begin = time.perf_counter()
                self._run(case)
                seconds.append(time.perf_counter() - begin)
        return [statistics.median(seconds) for seconds in found]

    def ready(self, order: Sequence[int]) -> Block:
        """The cases in ``order`` with their signals in memory."""
        begin, begin_cpu = time.perf_counter(), time.process_time()
        for number in order:
            self._run(self._cases[number])
        seconds, cpu_s = time.perf_counter() - begin, time.process_time() - begin_cpu
        return Block(seconds / len(order), cpu_s / len(order))

    def served(
        self,
        teacher: RemoteTeacher,
        spec: SignalSpec,
        passes: Sequence[Sequence[int]],
        variants: Iterator[int],
        *,
        ahead: int,
    ) -> Block:
        """``passes`` one after another with signals of ``teacher``, each asked for under one of ``variants``.

        Steps before fill the pipeline, and questions after keep it full to the end; neither are counted.
        """
        before = [*passes[0], *passes[0]][: ahead + 1]
        after = [*passes[-1], *passes[-1]][:ahead]
        items = [
            (number, as_variant(self._cases[number].batch, variant))
            for numbers, variant in zip((before, *passes, after), variants, strict=False)
            for number in numbers
        ]
        steps = sum(map(len, passes))
        used = sum(len(self._cases[number].batch.labels_B) for order in passes for number in order)
        found = teacher.signals(items, _batches_of, spec, ahead=ahead)
        self._take(found, len(before))
        computed, waited_s = _computed_rows(teacher), teacher.waited_s
        begin, begin_cpu = time.perf_counter(), time.process_time()
        self._take(found, steps)
        seconds, cpu_s = time.perf_counter() - begin, time.process_time() - begin_cpu
        waited_s, computed = teacher.waited_s - waited_s, _computed_rows(teacher) - computed
        for _ in found:
            pass
        return Block(seconds / steps, cpu_s / steps, waited_s / steps, computed / used)

    def _take(self, found: Iterator[tuple[tuple[int, Batch], tuple[TeacherSignal, ...]]], steps: int) -> None:
        for (number, _), (signal,) in itertools.islice(found, steps):
            self._run(Case(self._cases[number].batch, signal))


def _computed_rows(teacher: RemoteTeacher) -> int:
    return sum(counts.get("computed_rows", 0) for counts in teacher.counters().values())


def _batches_of(item: tuple[int, Batch]) -> tuple[Batch]:
    return (item[1],)


def orders(count: int, *, seed: int) -> Iterator[list[int]]:
    """Passes over ``count`` cases, each in an order of its own."""
    generator = np.random.default_rng(seed)
    while True:
        yield generator.permutation(count).tolist()


@dataclass(frozen=True)
class Share:
    """A served pass beside the passes with signals ready before and after it: their mean over its time."""

    before: Block
    served: Block
    after: Block

    @property
    def of_throughput(self) -> float:
        """By the wall clock: 1 where the service costs nothing."""
        return (self.before.seconds + self.after.seconds) / 2 / self.served.seconds

    @property
    def of_cpu(self) -> float:
        """The same by the student's processor time, which others' load does not change, and which waiting does not."""
        return (self.before.cpu_s + self.after.cpu_s) / 2 / self.served.cpu_s

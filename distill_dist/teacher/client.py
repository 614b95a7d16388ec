"""A student's view of its teachers: signals for batches, asked for ahead of their use."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol, TypeVar

import torch

from distill_dist.comm.rpc_world import CallFailed, Reply, RpcWorld
from distill_dist.errors import Interrupted
from distill_dist.models.encoder import EncoderParts
from distill_dist.records import Batch, SignalSpec, TeacherSignal
from distill_dist.teacher import host
from distill_dist.teacher.compute import compute_signal, describe_model
from distill_dist.teacher.wire import pack_request, unpack_signal

T = TypeVar("T")
_log = logging.getLogger(__name__)


class TeacherLost(Interrupted):
    """A teacher died or missed its deadline. ``number`` counts teachers from 0."""

    def __init__(self, number: int, reason: str) -> None:
        """Name the teacher and what happened."""
        super().__init__(f"lost its teacher: {reason}")
        self.number = number


class Teacher(Protocol):
    """Where signals come from; the numbers do not depend on which."""

    waited_s: float
    """Seconds this student spent waiting for signals so far."""

    def signals(
        self, items: Iterable[T], batches_of: Callable[[T], Sequence[Batch]], spec: SignalSpec, *, ahead: int
    ) -> Iterator[tuple[T, tuple[TeacherSignal, ...]]]:
        """Every item with the signals of its batches, in order; up to ``ahead`` items are asked for in advance."""
        ...

    def describe(self) -> dict[str, Any]:
        """The teacher's own figures: `parameters`."""
        ...

    def release(self, *, timeout_s: float, early: bool = False) -> None:
        """Nothing more will be asked; waits at most ``timeout_s`` for a teacher to hear it.

        ``early``: the run stopped before its end, so no other student will ask either, alive or dead.
        """
        ...


def _spec_of(batch: Batch, spec: SignalSpec) -> SignalSpec:
    return spec if batch.alignment > 0 else spec.without_gradients


class LocalTeacher:
    """The teacher inside the student's own process (`cluster.teachers: 0`)."""

    def __init__(self, parts: EncoderParts, device: torch.device) -> None:
        """``parts`` of a model in eval mode on ``device``."""
        self._parts, self._device = parts, device
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

    def release(self, *, timeout_s: float, early: bool = False) -> None:
        """See Teacher."""

    def _compute(self, batch: Batch, spec: SignalSpec) -> TeacherSignal:
        spec = _spec_of(batch, spec)
        labels_B = batch.labels_B if spec.needs_labels else None
        return compute_signal(self._parts, *batch.inputs, spec, labels_B=labels_B)


class RemoteTeacher:
    """Teachers in other processes, called over RPC."""

    def __init__(
        self, world: RpcWorld, names: Sequence[str], *, student: int, deadline_s: float, lease_s: float
    ) -> None:
        """``names`` of the teachers in the RPC world; ``student`` is this process's number among students."""
        self._world, self._names, self._student = world, tuple(names), student
        self._deadline_s = deadline_s
        self._asked = student  # so that students begin at different teachers
        self.waited_s = 0.0
        self._done = threading.Event()
        threading.Thread(target=self._renew_leases, args=(lease_s / 4,), daemon=True).start()

    def signals(
        self, items: Iterable[T], batches_of: Callable[[T], Sequence[Batch]], spec: SignalSpec, *, ahead: int
    ) -> Iterator[tuple[T, tuple[TeacherSignal, ...]]]:
        """See Teacher. Raises TeacherLost when an answer fails or is later than the deadline."""
        pending: deque[tuple[T, list[tuple[Batch, int, Reply]]]] = deque()
        for item in items:
            pending.append((item, [self._ask(batch, spec) for batch in batches_of(item)]))
            if len(pending) > ahead:
                yield self._collect(*pending.popleft())
        while pending:
            yield self._collect(*pending.popleft())

    def describe(self) -> dict[str, Any]:
        """See Teacher; the first one speaks for all."""
        found = self._wait(0, self._call(0, host.describe))
        assert isinstance(found, dict)
        return found

    def release(self, *, timeout_s: float, early: bool = False) -> None:
        """See Teacher. One that does not hear it is no error: its lease will end."""
        function, arguments = (host.dismiss, ()) if early else (host.release, (self._student,))
        self._done.set()
        for number, name in enumerate(self._names):
            try:
                self._call(number, function, *arguments).wait(timeout_s)
            except (TeacherLost, CallFailed) as error:
                _log.warning("%s was not released: %s", name, error)

    def _ask(self, batch: Batch, spec: SignalSpec) -> tuple[Batch, int, Reply]:
        spec = _spec_of(batch, spec)
        # Any teacher gives the same signal: turns are taken.
        self._asked += 1
        number = self._asked % len(self._names)
        return (
            batch,
            number,
            self._call(number, host.ask, pack_request(batch, labels=spec.needs_labels), spec),
        )

    def _collect(self, item: T, asked: list[tuple[Batch, int, Reply]]) -> tuple[T, tuple[TeacherSignal, ...]]:
        start = time.perf_counter()
        found = tuple(
            unpack_signal(self._wait(number, reply), batch.attention_mask_BL)
            for batch, number, reply in asked
        )
        self.waited_s += time.perf_counter() - start
        return item, found

    def _call(self, number: int, function: Callable[..., Any], *arguments: Any) -> Reply:
        try:
            return self._world.call(self._names[number], function, *arguments)
        except CallFailed as error:
            raise TeacherLost(number, str(error)) from error

    def _wait(self, number: int, reply: Reply) -> Any:
        try:
            return reply.wait(self._deadline_s)
        except CallFailed as error:
            raise TeacherLost(number, str(error)) from error

    def _renew_leases(self, every_s: float) -> None:
        while not self._done.wait(every_s):
            for name in self._names:
                try:
                    self._world.call(name, host.renew)
                except CallFailed as error:
                    _log.warning("lease not renewed: %s", error)  # the next signal will say so too
                    return

"""The teacher's side of the RPC world: a queue that remote calls fill and one loop that empties.

RPC runs the functions of this module by name in its own threads; they only queue, and the loop in the main
thread computes, so that two questions never compete for the device.
"""

from __future__ import annotations

import logging
import queue
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch.futures import Future

from distill_dist.comm.rpc_world import answered_later
from distill_dist.records import SignalSpec
from distill_dist.teacher.wire import Request, WireSignal

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Question:
    request: Request
    spec: SignalSpec
    answer: Future[WireSignal]


class TeacherHost:
    """Answers questions until every student has let go, the lease runs out, or it is told to stop."""

    def __init__(
        self,
        compute: Callable[[Request, SignalSpec], WireSignal],
        *,
        students: int,
        lease_s: float,
        description: dict[str, Any],
    ) -> None:
        """``compute`` answers one question; ``lease_s`` is the longest silence of all students, in seconds."""
        self._compute = compute
        self._students = set(range(students))
        self._lease_s = lease_s
        self.description = description
        self._questions: queue.SimpleQueue[_Question] = queue.SimpleQueue()
        self._last_call = time.monotonic()
        self.answered = 0
        self.dismissed = False

    def serve(self, *, should_stop: Callable[[], bool]) -> bool:
        """Answer until done: True when every student let go, False when it leaves before that.

        That is when the lease ran out, it was stopped, or a student dismissed it.
        """
        while self._students:
            if self.dismissed:
                return False
            try:
                question = self._questions.get(timeout=0.2)
            except queue.Empty:
                if time.monotonic() - self._last_call > self._lease_s:
                    _log.warning("no student called for %.0f s (teacher.lease_s): leaving", self._lease_s)
                    return False
                if should_stop():
                    return False
                continue
            self._answer(question)
        return True

    def _answer(self, question: _Question) -> None:
        try:
            answer = self._compute(question.request, question.spec)
        except Exception as error:  # whatever the model raises belongs to the student who asked
            _log.exception("a question could not be answered")
            question.answer.set_exception(RuntimeError(f"{type(error).__name__}: {error}"))  # type: ignore[arg-type]
            return
        question.answer.set_result(answer)
        self.answered += 1

    def put(self, request: Request, spec: SignalSpec) -> Future[WireSignal]:
        """Queue a question; called by RPC threads."""
        answer: Future[WireSignal] = Future()
        self._last_call = time.monotonic()
        self._questions.put(_Question(request, spec, answer))
        return answer

    def renew(self) -> None:
        """A student is alive, whether or not it has a question."""
        self._last_call = time.monotonic()

    def release(self, student: int) -> None:
        """``student`` needs no more answers."""
        self._students.discard(student)

    def dismiss(self) -> None:
        """The run ended early: nobody will ask any more, not even students that cannot say so."""
        self.dismissed = True


_host: TeacherHost | None = None


def open_host(host: TeacherHost) -> None:
    """Let remote calls reach ``host``; before the RPC world is joined."""
    global _host
    _host = host


def _opened() -> TeacherHost:
    assert _host is not None, "open_host comes before the RPC world"
    return _host


@answered_later
def ask(request: Request, spec: SignalSpec) -> Future[WireSignal]:
    """Remote: the teacher's signal for one micro-batch."""
    return _opened().put(request, spec)


def renew() -> None:
    """Remote: prolong the lease."""
    _opened().renew()


def release(student: int) -> None:
    """Remote: this student is done."""
    _opened().release(student)


def dismiss() -> None:
    """Remote: the run ended early for every student."""
    _opened().dismiss()


def describe() -> dict[str, Any]:
    """Remote: the teacher's own figures (parameters)."""
    return _opened().description

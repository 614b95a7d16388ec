"""What the teachers' counters say while a run trains: scalars of every interval, and a line to the log every epoch."""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass, field

from distill_dist.teacher.local import Teacher
from distill_dist.teacher.report import Counters, service_report
from distill_dist.telemetry import Telemetry

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Heard:
    """What the hosts answered; one that does not answer is left out."""

    step: int  # after which they were asked
    counts: Counters
    at_s: float


@dataclass
class ServiceWatch:
    """For student 0. Hosts are asked beside the steps, in a thread: one that hangs holds no step up."""

    teacher: Teacher
    telemetry: Telemetry
    students: int
    _interval: _Heard = field(default_factory=lambda: _Heard(0, {}, 0.0))  # newest, of every host
    _epoch: Counters = field(default_factory=dict)  # when the last epoch ended
    _spent: tuple[float, float] = (0.0, 0.0)  # seconds then: elapsed, waited by all students
    _asking: threading.Thread | None = None
    _answer: _Heard | None = None

    def begin(self, step: int) -> None:
        """Leave out what was asked so far."""
        self._interval = self._hear(step)
        self._epoch = self._interval.counts

    def ask(self, step: int) -> None:
        """Write what the hosts said the last time, and ask them again; not while they have not answered."""
        if self._asking is not None and self._asking.is_alive():
            return
        self._take()
        self._asking = threading.Thread(target=self._ask, args=(step,), daemon=True)
        self._asking.start()

    def end_epoch(self, step: int) -> None:
        """The epoch's line, once the hosts have answered. Waits as long for each as Teacher.counters does."""
        if self._asking is not None:
            self._asking.join()
            self._take()
        if self._interval.step != step:  # they still owed the answer before
            self._answer = self._hear(step)
            self._take()
        totals, counts = self.telemetry.totals, self._interval.counts
        elapsed, waited = totals.elapsed_s - self._spent[0], totals.waited_s - self._spent[1]
        report = service_report(self._epoch, counts, elapsed_s=elapsed)
        self._epoch, self._spent = counts, (totals.elapsed_s, totals.waited_s)
        if report is not None:
            _log.info("teachers: %s", report.line(waited / (elapsed * self.students)))

    def close(self, timeout_s: float) -> None:
        """No thread of ours is left in an RPC world that ends, if the hosts answer within ``timeout_s``."""
        if self._asking is not None:
            self._asking.join(timeout_s)

    def _hear(self, step: int) -> _Heard:
        counts = self.teacher.counters()
        return _Heard(step, counts, time.monotonic())

    def _ask(self, step: int) -> None:
        self._answer = self._hear(step)

    def _take(self) -> None:
        """Scalars of the interval that ended with the newest answer, at the step after which it was asked for."""
        answer, self._answer = self._answer, None
        if answer is None:
            return
        before = self._interval
        report = service_report(before.counts, answer.counts, elapsed_s=answer.at_s - before.at_s)
        # one that does not answer now is still known when it comes back
        self._interval = _Heard(answer.step, {**before.counts, **answer.counts}, answer.at_s)
        if report is not None:
            self.telemetry.write(answer.step, report.scalars())

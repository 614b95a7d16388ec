"""The host's view of its worker: a process that is started, asked, and started again when it dies or hangs."""

from __future__ import annotations

import contextlib
import itertools
import logging
import socket
import subprocess
import time
from collections.abc import Callable
from typing import Any

from distill_dist.errors import UserError
from distill_dist.records import SignalSpec
from distill_dist.teacher.compute import NotSane
from distill_dist.teacher.frames import Closed, receive, send
from distill_dist.teacher.sanity import Drifted, Probe, drift, fault
from distill_dist.teacher.wire import Request
from distill_dist.teacher.worker import pack_question

_log = logging.getLogger(__name__)
# Workers that one request may cost before it is taken for what kills them.
MOST_LOST = 3
END_S = 5.0


class WorkerLost(RuntimeError):
    """The worker died, or did not answer in time."""


class WorkerProcess:
    """Calls its worker; one thread at a time. It is started by the first call, or by ``start``."""

    def __init__(
        self,
        command: Callable[[socket.socket], subprocess.Popen[bytes]],
        *,
        start_s: float,
        deadline_s: float,
    ) -> None:
        """``command`` starts the process, whose end of the pair it gets; it has ``start_s`` to load its model.

        ``deadline_s`` is the longest wait for one answer. Both in seconds.
        """
        self._command, self._start_s, self._deadline_s = command, start_s, deadline_s
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: socket.socket | None = None
        self._fingerprint: str | None = None
        self._probe: Probe | None = None  # what the first worker said of the probe's rows
        self._has_answered = False  # since it was asked about them
        self._is_vouched = True  # False: one ended that had, and nobody can ask it now
        self.restarts = 0
        self.restarting_ms = 0  # spent on it while somebody waited

    @property
    def pid(self) -> int | None:
        """Of the running process."""
        return None if self._process is None else self._process.pid

    def start(self) -> dict[str, Any]:
        """What the worker says of its teacher once it is loaded, its answer to the probe included.

        Raises UserError, also for another teacher than before; Drifted; WorkerLost.
        """
        ours, theirs = socket.socketpair()
        with theirs:
            self._process, self._connection = self._command(theirs), ours
        try:
            header, _ = receive(ours, timeout_s=self._start_s)
        except TimeoutError as error:
            self._kill()
            raise WorkerLost(
                f"the worker did not load its teacher within {self._start_s:.0f} s (cluster.collective_s)"
            ) from error
        except Closed as error:
            process = self._process
            self.stop()
            raise WorkerLost(
                f"the worker ended with {process.returncode} while it loaded its teacher: see its log"
            ) from error
        if "refused" in header:
            self.stop()
            raise UserError(header["refused"])
        description: dict[str, Any] = header["ready"]
        fingerprint = description.get("fingerprint")
        if self._fingerprint not in (None, fingerprint):
            self.stop()
            # under the old teacher's keys its rows would be wrong, here and in every run that shares the cache
            raise UserError(
                "teacher.path holds another model than when this run began: put that one back, or start another run"
            )
        self._fingerprint = fingerprint
        self._judge(Probe(**description["probe"]))
        _log.info("worker %d has loaded its teacher", self._process.pid)
        return description

    def check(self) -> bool:
        """Ask a worker that runs about the probe's rows again. Raises Drifted.

        Whether every worker that has computed something since the last time was asked after it: one that was lost
        could not be. One that fails is replaced by the next question.
        """
        if self._connection is not None:
            self._ask_again()
        was_vouched = self._is_vouched and not self._has_answered
        self._is_vouched, self._has_answered = True, False  # what is not vouched for is dropped
        return was_vouched

    def _ask_again(self) -> None:
        try:
            header, _ = self._exchange({"probe": True})
        except WorkerLost as error:
            self._lose(error)
            return
        if "probe" in header:
            self._judge(Probe(**header["probe"]))
            self._has_answered = False
        elif header["kind"] == "memory":
            _log.warning("no memory was left to ask the teacher about the probe's rows")
        else:
            self._lose(WorkerLost(header["error"]))

    def counters(self) -> dict[str, int]:
        """What telemetry shows of it."""
        return {"restarts": self.restarts, "restarting_ms": self.restarting_ms}

    def _judge(self, probe: Probe) -> None:
        reason = fault(probe)
        if self._probe is None and reason is None:
            self._probe = probe
            return
        if self._probe is not None:
            reason = reason or drift(self._probe, probe)
        if reason is None:
            return
        self._kill()
        if self._probe is None:
            raise UserError(f"nobody can learn from the teacher: {reason}")
        raise Drifted(f"the teacher says something else than when the run began: {reason}")

    def stop(self) -> None:
        """End it, and free its device; the next call starts another."""
        self._is_vouched, self._has_answered = self._is_vouched and not self._has_answered, False
        if self._connection is not None:
            self._connection.close()  # it ends when it reads that
            self._connection = None
        if self._process is None:
            return
        try:
            self._process.wait(0.0 if self._process.poll() is not None else END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    def _kill(self) -> None:
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()  # a stopped one does not read that it should end
        self.stop()

    def __call__(self, request: Request, spec: SignalSpec) -> list[bytes]:
        """The encoded rows. Raises MemoryError, NotSane, Drifted, RuntimeError of the model, WorkerLost in the end."""
        lost: list[str] = []
        while len(lost) < MOST_LOST:
            try:
                if self._connection is None:
                    begin = time.monotonic()
                    self.start()
                    self.restarting_ms += round(1000 * (time.monotonic() - begin))
                return self._ask(request, spec)
            except (WorkerLost, MemoryError) as error:
                # One row cannot be halved, but what it lacks may be what this process has leaked.
                if isinstance(error, MemoryError) and (len(request.lengths_B) > 1 or lost):
                    raise
                lost.append(str(error))
                self._lose(error)
        raise WorkerLost(f"{MOST_LOST} workers were lost over one request: {lost[-1]}")

    def _lose(self, error: Exception) -> None:
        self.restarts += 1
        _log.warning("worker lost: %s; starting another", error)
        self._kill()

    def _ask(self, request: Request, spec: SignalSpec) -> list[bytes]:
        header, body = self._exchange(*pack_question(request, spec))
        if "error" not in header:
            self._has_answered = True
            ends = itertools.accumulate(header["sizes"], initial=0)
            return [body[begin:end] for begin, end in itertools.pairwise(ends)]
        if header["kind"] == "insane":
            self._ask_again()  # whether it is the rows, or the teacher
            raise NotSane(header["error"])
        if header["kind"] == "device":
            raise WorkerLost(header["error"])
        raise (MemoryError if header["kind"] == "memory" else RuntimeError)(header["error"])

    def _exchange(self, header: dict[str, Any], body: bytes = b"") -> tuple[dict[str, Any], bytes]:
        assert self._connection is not None
        try:
            send(self._connection, header, body, timeout_s=self._deadline_s)
            return receive(self._connection, timeout_s=self._deadline_s)
        except TimeoutError as error:
            raise WorkerLost(f"no answer within {self._deadline_s:.0f} s") from error
        except Closed as error:
            raise WorkerLost(f"it ended ({error})") from error

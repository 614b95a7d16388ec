"""The host's view of a sharded teacher: the leader's worker, whose followers start and end with it."""

from __future__ import annotations

import logging
import socket
import subprocess
import threading
from collections.abc import Callable
from typing import Any

from distill_dist.comm.attempts import WATCH_S, Attempts, Broken, StoreGone
from distill_dist.errors import UserError
from distill_dist.teacher.sanity import Drifted
from distill_dist.teacher.worker_process import WorkerLost, WorkerProcess

_log = logging.getLogger(__name__)


class ReplicaProcess(WorkerProcess):
    """A WorkerProcess that counts its starts, so that the followers' supervisors start theirs with it."""

    def __init__(
        self,
        command: Callable[[socket.socket, int], subprocess.Popen[bytes]],
        attempts: Attempts,
        *,
        start_s: float,
        deadline_s: float,
    ) -> None:
        """``command`` starts the leader's worker of an attempt, by its number. See WorkerProcess."""
        super().__init__(self._begin, start_s=start_s, deadline_s=deadline_s)
        self._start_worker, self._attempts = command, attempts
        self._running: tuple[int, subprocess.Popen[bytes]] | None = None
        threading.Thread(target=self._watch, args=(attempts.clone(),), daemon=True).start()

    def start(self) -> dict[str, Any]:
        """See WorkerProcess."""
        try:
            return super().start()
        except WorkerLost as error:
            broken = self._broken()
            if broken is None:
                raise
            if broken.kind == "refused" and self._probe is not None:
                raise Drifted(broken.reason) from error  # it was good when the run began
            if broken.kind == "refused":
                raise UserError(broken.reason) from error
            raise WorkerLost(broken.reason) from error

    def _begin(self, connection: socket.socket) -> subprocess.Popen[bytes]:
        try:
            number = self._attempts.begin()
        except StoreGone as error:
            raise WorkerLost(str(error)) from error
        process = self._start_worker(connection, number)
        self._running = number, process
        return process

    def _exchange(self, header: dict[str, Any], body: bytes = b"") -> tuple[dict[str, Any], bytes]:
        try:
            return super()._exchange(header, body)
        except WorkerLost as error:
            broken = self._broken()
            if broken is None:
                raise
            if broken.kind not in ("memory", "model"):
                raise WorkerLost(broken.reason) from error
            # another attempt would only repeat it
            _log.warning("the members ended: %s; the next request starts others", broken.reason)
            self.stop()
            return {"error": broken.reason, "kind": broken.kind}, b""

    def _broken(self) -> Broken | None:
        try:
            return None if self._running is None else self._attempts.broken(self._running[0])
        except StoreGone:
            return None

    def _watch(self, attempts: Attempts) -> None:
        """A worker that waits for a member that is gone does not end by itself."""
        wait = threading.Event()
        while not wait.wait(WATCH_S):
            running = self._running
            if running is None:
                continue
            number, process = running
            try:
                if process.poll() is None and attempts.broken(number) is not None:
                    process.kill()
            except StoreGone:
                return

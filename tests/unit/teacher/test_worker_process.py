"""The host's view of a worker that is started again."""

from __future__ import annotations

import socket
import subprocess
import threading
from typing import Any, cast

import pytest
import torch

from distill_dist.errors import UserError
from distill_dist.records import SignalSpec
from distill_dist.teacher.wire import Request
from distill_dist.teacher.worker import serve_requests
from distill_dist.teacher.worker_process import WorkerProcess


class FakeProcess:
    """A worker in a thread; it ends with its connection."""

    pid = 1

    def __init__(self, connection: socket.socket, about: dict[str, Any], row: bytes) -> None:
        self._own = connection.dup()
        self._thread = threading.Thread(
            target=serve_requests, args=(self._own, lambda request, spec: [row], about), daemon=True
        )
        self._thread.start()

    def poll(self) -> int | None:
        return None if self._thread.is_alive() else 0

    def wait(self, timeout: float | None = None) -> int:
        self._thread.join(timeout)
        self._own.close()
        return 0

    def kill(self) -> None:
        self._own.shutdown(socket.SHUT_RDWR)


def asked() -> Request:
    ids = torch.zeros(1, 2, dtype=torch.int32)
    return Request((bytes(16),), ids, torch.tensor([2], dtype=torch.int32), ids.to(torch.uint8), None)


@pytest.mark.parametrize("same", [True, False])
def test_a_worker_that_teaches_something_else_answers_nothing(same: bool) -> None:
    teachers = iter([("f", b"first"), ("f" if same else "g", b"second")])

    def command(connection: socket.socket) -> subprocess.Popen[bytes]:
        fingerprint, row = next(teachers)
        return cast("subprocess.Popen[bytes]", FakeProcess(connection, {"fingerprint": fingerprint}, row))

    worker = WorkerProcess(command, start_s=20.0, deadline_s=20.0)
    assert worker(asked(), SignalSpec()) == [b"first"]
    worker.stop()  # as when it rests
    if same:
        assert worker(asked(), SignalSpec()) == [b"second"]
    else:
        with pytest.raises(UserError, match=r"teacher\.path holds another model"):
            worker(asked(), SignalSpec())
    worker.stop()

"""The host's view of a worker that is started again."""

from __future__ import annotations

import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any, cast

import pytest
import torch

from distill_dist.errors import UserError
from distill_dist.records import SignalSpec
from distill_dist.teacher.compute import NotSane
from distill_dist.teacher.sanity import Drifted, Probe
from distill_dist.teacher.wire import Request
from distill_dist.teacher.worker import serve_requests
from distill_dist.teacher.worker_process import WorkerProcess


class FakeProcess:
    """A worker in a thread; it ends with its connection."""

    pid = 1

    def __init__(
        self,
        connection: socket.socket,
        about: dict[str, Any],
        answer: Callable[[], bytes],
        probe: Callable[[], Probe],
    ) -> None:
        self._own = connection.dup()
        self._thread = threading.Thread(
            target=serve_requests,
            args=(
                self._own,
                lambda request, spec: [answer()],
                {**about, "probe": asdict(probe())},
                probe,
            ),
            daemon=True,
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


SANE = Probe(logits=[[1.0, -1.0], [0.5, 0.25]], saliency=[[1.0, 2.0], [3.0, 0.5]])
ROUNDED = Probe(logits=[[1.0 + 1e-6, -1.0], [0.5, 0.25]], saliency=[[1.0, 2.0], [3.0, 0.5 - 1e-5]])
OTHER = Probe(logits=[[1.0, -1.0], [0.5, 0.35]], saliency=SANE.saliency)
FLAT = Probe(logits=[[1.0, 1.0], [0.5, 0.5]], saliency=SANE.saliency)


class Teachers:
    """Workers of one teacher; ``says`` is what they say of the probe's rows."""

    def __init__(self) -> None:
        self.says = SANE
        self.started = 0
        self.insane = False
        self.errors: list[Exception] = []  # of the next answers
        self.probe_error: Exception | None = None

    def answer(self) -> bytes:
        if self.errors:
            raise self.errors.pop(0)
        if self.insane:
            raise NotSane("its logits are not finite")
        return b"row"

    def probe(self) -> Probe:
        if self.probe_error is not None:
            raise self.probe_error
        return self.says

    def command(self, connection: socket.socket) -> subprocess.Popen[bytes]:
        self.started += 1
        fake = FakeProcess(connection, {"fingerprint": "f"}, self.answer, self.probe)
        return cast("subprocess.Popen[bytes]", fake)


@pytest.fixture
def teachers() -> Teachers:
    return Teachers()


@pytest.fixture
def worker(teachers: Teachers) -> Iterator[WorkerProcess]:
    found = WorkerProcess(teachers.command, start_s=20.0, deadline_s=20.0)
    yield found
    found.stop()


def test_a_teacher_that_drifts_is_found_out_while_it_runs(worker: WorkerProcess, teachers: Teachers) -> None:
    assert worker.start()["probe"] == asdict(SANE)
    teachers.says = ROUNDED
    worker.check()
    assert worker(asked(), SignalSpec()) == [b"row"]
    teachers.says = OTHER
    with pytest.raises(Drifted, match=r"says something else .*logits on 2 rows differ by 1\.0e-01"):
        worker.check()
    assert worker.pid is None
    # not checked while nothing runs: it would take a device that rests
    worker.check()
    assert teachers.started == 1


def test_a_teacher_that_is_another_one_after_a_restart_answers_nothing(
    worker: WorkerProcess, teachers: Teachers
) -> None:
    worker.start()
    worker.stop()
    teachers.says = OTHER
    with pytest.raises(Drifted):
        worker(asked(), SignalSpec())


@pytest.mark.parametrize("drifted", [True, False])
def test_rows_that_are_not_finite_are_the_teachers_fault_or_theirs(
    worker: WorkerProcess, teachers: Teachers, drifted: bool
) -> None:
    worker.start()
    teachers.insane, teachers.says = True, FLAT if drifted else SANE
    with pytest.raises(Drifted if drifted else NotSane):
        worker(asked(), SignalSpec())


def test_a_teacher_that_tells_no_classes_apart_is_refused(worker: WorkerProcess, teachers: Teachers) -> None:
    teachers.says = FLAT
    with pytest.raises(UserError, match="all classes of each of 2 rows the same logit"):
        worker.start()


def test_a_worker_that_dies_while_it_is_checked_is_replaced(
    worker: WorkerProcess, teachers: Teachers
) -> None:
    worker.start()
    process = worker._process
    assert process is not None
    process.kill()
    worker.check()
    assert worker.counters()["restarts"] == 1
    assert worker(asked(), SignalSpec()) == [b"row"]
    assert teachers.started == 2
    assert worker.counters()["restarting_ms"] >= 0


def test_what_a_lost_worker_computed_is_vouched_for_by_nobody(
    worker: WorkerProcess, teachers: Teachers
) -> None:
    worker.start()
    assert worker.check(), "nothing was computed"
    worker(asked(), SignalSpec())
    assert worker.check()
    for ask_another in (False, True):
        worker(asked(), SignalSpec())
        worker.stop()  # as when it is lost
        if ask_another:
            worker(asked(), SignalSpec())
        assert not worker.check()
        assert worker.check(), "those rows are dropped"
    assert teachers.started == 3


def test_a_worker_that_cannot_be_asked_is_vouched_for_by_nobody(
    worker: WorkerProcess, teachers: Teachers
) -> None:
    worker(asked(), SignalSpec())
    teachers.probe_error = RuntimeError("DefaultCPUAllocator: can't allocate memory")
    assert not worker.check()
    teachers.probe_error = None
    worker(asked(), SignalSpec())
    assert worker.check()
    assert teachers.started == 1


def asked() -> Request:
    ids = torch.zeros(1, 2, dtype=torch.int32)
    return Request((bytes(16),), ids, torch.tensor([2], dtype=torch.int32), ids.to(torch.uint8), None)


@pytest.mark.parametrize("same", [True, False])
def test_a_worker_that_teaches_something_else_answers_nothing(same: bool) -> None:
    teachers = iter([("f", b"first"), ("f" if same else "g", b"second")])

    def command(connection: socket.socket) -> subprocess.Popen[bytes]:
        fingerprint, row = next(teachers)
        fake = FakeProcess(connection, {"fingerprint": fingerprint}, lambda: row, lambda: SANE)
        return cast("subprocess.Popen[bytes]", fake)

    worker = WorkerProcess(command, start_s=20.0, deadline_s=20.0)
    assert worker(asked(), SignalSpec()) == [b"first"]
    worker.stop()  # as when it rests
    if same:
        assert worker(asked(), SignalSpec()) == [b"second"]
    else:
        with pytest.raises(UserError, match=r"teacher\.path holds another model"):
            worker(asked(), SignalSpec())
    worker.stop()


def test_a_row_alone_that_finds_no_memory_gets_one_more_worker(
    worker: WorkerProcess, teachers: Teachers
) -> None:
    full = RuntimeError("DefaultCPUAllocator: can't allocate memory")
    teachers.errors = [full]
    assert worker(asked(), SignalSpec()) == [b"row"]
    assert teachers.started == 2
    teachers.errors = [full, full]
    with pytest.raises(MemoryError, match="can't allocate memory"):
        worker(asked(), SignalSpec())
    assert teachers.started == 3
    assert teachers.errors == []


def test_kernels_that_cannot_be_compiled_cost_the_worker(worker: WorkerProcess, teachers: Teachers) -> None:
    teachers.errors = [RuntimeError("could not create a primitive")]
    assert worker(asked(), SignalSpec()) == [b"row"]
    assert teachers.started == 2
    assert worker.restarts == 1

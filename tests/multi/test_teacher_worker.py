"""A host's worker with real processes that die, hang, refuse and run out of memory."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from tiny import environment

from distill_dist.children import start_child
from distill_dist.errors import UserError
from distill_dist.records import NoiseSpec, SignalSpec
from distill_dist.teacher.compute import NotSane
from distill_dist.teacher.wire import Request
from distill_dist.teacher.worker import pack_question, unpack_question
from distill_dist.teacher.worker_process import WorkerLost, WorkerProcess
from multi.teacher_worker_child import (
    ALWAYS_DIES,
    DIES,
    INSANE,
    LEAKS,
    NO_DEVICE,
    NO_KERNEL,
    NO_MEMORY,
    STOPS,
    WRONG,
)

SPEC = SignalSpec((1, 2), cls_states=True, signal="label", noise=NoiseSpec(0.1, 2, 3))


def request_of(*rows: list[int], labels: bool = True) -> Request:
    length = max(len(row) for row in rows)
    padded = torch.tensor([row + [0] * (length - len(row)) for row in rows], dtype=torch.int32)
    return Request(
        keys_B=(),
        input_ids_BL=padded,
        lengths_B=torch.tensor([len(row) for row in rows], dtype=torch.int32),
        token_type_ids_BL=(padded % 2).to(torch.uint8),
        labels_B=torch.arange(len(rows), dtype=torch.int32) if labels else None,
    )


@pytest.fixture
def worker(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[WorkerProcess]:
    def start(connection: socket.socket) -> subprocess.Popen[bytes]:
        job: dict[str, Any] = {"connection": connection.fileno(), "folder": str(tmp_path)}
        job["refuses"] = getattr(request, "param", False)
        return start_child(
            "multi.teacher_worker_child", job, pass_fds=(connection.fileno(),), env=environment()
        )

    found = WorkerProcess(start, start_s=60, deadline_s=5)
    yield found
    pid = found.pid
    found.stop()
    assert pid is None or not psutil.pid_exists(pid)


@pytest.mark.parametrize("labels", [True, False])
def test_a_question_survives_its_frame(labels: bool) -> None:
    request = request_of([5, 6, 7], [9], labels=labels)
    found, spec = unpack_question(*pack_question(request, SPEC))
    assert spec == SPEC
    for name in ("input_ids_BL", "lengths_B", "token_type_ids_BL"):
        assert torch.equal(getattr(found, name), getattr(request, name)), name
    assert (found.labels_B is not None) == labels
    assert not labels or torch.equal(found.labels_B, request.labels_B)  # type: ignore[arg-type]


def test_it_answers_and_is_started_again_when_it_dies_hangs_or_loses_device_or_memory(
    worker: WorkerProcess,
) -> None:
    about = worker.start()
    assert about["parameters"] == 7
    expected = [bytes([5, 6, 2, 0]), bytes([7, 2, 1])]
    assert worker(request_of([5, 6], [7]), SPEC) == expected
    assert worker.pid == about["process"]
    for number, harm in enumerate((DIES, STOPS, NO_DEVICE, LEAKS, NO_KERNEL), start=1):
        before = worker.pid
        assert worker(request_of([harm]), SPEC) == [bytes([harm, 2, 0])]
        assert worker.restarts == number
        assert worker.pid != before
        assert before is not None
        assert not psutil.pid_exists(before)
    assert worker.pid is not None
    os.kill(worker.pid, signal.SIGKILL)  # between two questions
    assert worker(request_of([5, 6], [7]), SPEC) == expected
    assert worker.restarts == 6


def test_errors_of_the_model_keep_the_process(worker: WorkerProcess) -> None:
    worker.start()
    with pytest.raises(MemoryError, match="too many rows"):
        worker(request_of([NO_MEMORY], [5]), SPEC)
    with pytest.raises(NotSane, match="not finite"):
        worker(request_of([INSANE]), SPEC)
    with pytest.raises(RuntimeError, match="ValueError: this row is wrong"):
        worker(request_of([WRONG]), SPEC)
    assert worker(request_of([5], labels=False), SPEC) == [bytes([5, 2])]
    assert worker.restarts == 0


def test_what_kills_every_worker_is_given_back(worker: WorkerProcess) -> None:
    with pytest.raises(RuntimeError, match="3 workers were lost over one request"):
        worker(request_of([ALWAYS_DIES]), SPEC)
    assert worker(request_of([5]), SPEC) == [bytes([5, 2, 0])]


def test_a_row_alone_that_has_no_memory_gets_one_more_worker(worker: WorkerProcess) -> None:
    with pytest.raises(MemoryError, match="too many rows"):
        worker(request_of([NO_MEMORY]), SPEC)
    assert worker.restarts == 1
    assert worker(request_of([5]), SPEC) == [bytes([5, 2, 0])]
    assert worker.restarts == 1


def test_a_worker_that_is_stopped_frees_its_device_and_is_started_by_the_next_question(
    worker: WorkerProcess,
) -> None:
    about = worker.start()
    worker.stop()
    assert worker.pid is None
    assert not psutil.pid_exists(about["process"])
    assert worker(request_of([5]), SPEC) == [bytes([5, 2, 0])]
    assert worker.restarts == 0


@pytest.mark.parametrize("worker", [True], indirect=True)
def test_a_teacher_that_cannot_be_loaded_is_the_users_error(worker: WorkerProcess) -> None:
    with pytest.raises(UserError, match=r"teacher\.path does not exist"):
        worker.start()


def test_a_worker_that_does_not_come_up_is_lost(tmp_path: Path) -> None:
    found = WorkerProcess(
        lambda connection: subprocess.Popen(["sleep", "30"], pass_fds=(connection.fileno(),)),
        start_s=0.3,
        deadline_s=5,
    )
    with pytest.raises(WorkerLost, match="did not load its teacher within"):
        found.start()
    assert found.pid is None

"""The workers of a sharded teacher that die, hang, refuse and run out of memory: they end and start together."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path

import psutil
import pytest
import torch.distributed as dist
from tiny import environment, wait_until

from distill_dist.assemble.shard_follower import Follower
from distill_dist.assemble.shard_job import ShardJob
from distill_dist.children import start_child
from distill_dist.comm.attempts import WATCH_S, Attempts
from distill_dist.comm.environment import LaunchEnvironment
from distill_dist.errors import UserError
from distill_dist.records import SignalSpec
from distill_dist.teacher.replica_process import ReplicaProcess
from distill_dist.teacher.wire import Request
from multi.shard_worker_child import DIES, NO_MEMORY, STOPS, WRONG, harmless_rows, teacher

pytestmark = pytest.mark.timeout(600)
SPEC = SignalSpec((1, 3), cls_states=True, cls_gradients=True, embedding_gradient=True)
LEADER, RUN = 1, "tests"
DEADLINE_S = 8.0


@dataclass
class Replica:
    """Both members' supervisors in this process."""

    process: ReplicaProcess
    follower: Follower
    attempts: Attempts

    @property
    def pids(self) -> list[int | None]:
        return [self.process.pid, self.follower.pid]


@contextmanager
def replica(folder: Path, teacher_path: str = "t") -> Iterator[Replica]:
    master = dist.TCPStore(
        "127.0.0.1", 0, is_master=True, timeout=timedelta(seconds=60), wait_for_workers=False
    )
    store = dist.PrefixStore(f"distill/{RUN}/0", master)
    config = folder / "config.yaml"
    (folder / "run" / "logs").mkdir(parents=True)
    text = [f"run_dir: {folder}/run", "method: kd", f"data: {{source: synthetic_nli, prepared: {folder}/p}}"]
    text.append(f"teacher: {{path: {teacher_path}, shards: 2, deadline_s: {DEADLINE_S}}}")
    text.append("cluster: {teachers: 2, device: cpu, rendezvous_s: 60, collective_s: 60}")
    text.append("student: {freeze_embeddings: false}")
    config.write_text("\n".join(text), encoding="utf-8")

    def start(attempt: int, connection: socket.socket | None) -> subprocess.Popen[bytes]:
        member = int(connection is None)
        job = ShardJob(
            config=str(config),
            launch=asdict(LaunchEnvironment(LEADER + member, 3, 0, 3, "127.0.0.1", master.port)),
            run=RUN,
            leader=LEADER,
            member=member,
            attempt=attempt,
            threads=1,
            connection=None if connection is None else connection.fileno(),
        )
        descriptors = () if connection is None else (connection.fileno(),)
        return start_child("multi.shard_worker_child", asdict(job), pass_fds=descriptors, env=environment())

    attempts = Attempts(store, leader=LEADER)
    follower = Follower(attempts.clone(), lambda attempt: start(attempt, None))
    process = ReplicaProcess(
        lambda connection, attempt: start(attempt, connection), attempts, start_s=60, deadline_s=DEADLINE_S
    )
    done = threading.Event()

    def tend() -> None:
        while not done.wait(WATCH_S):
            follower.tend()
        follower.leave("the test is over")

    tending = threading.Thread(target=tend)
    tending.start()
    try:
        yield Replica(process, follower, attempts)
    finally:
        process.stop()
        done.set()
        tending.join(30)
    assert not tending.is_alive()


def request_of(*tokens: int, place: int = -1) -> Request:
    """Eight rows, of which the one at ``place`` begins with ``tokens``: the last is the follower's, the first not."""
    request = harmless_rows((9, 4, 12, 7, 5, 11, 6, 10))
    for position, token in enumerate(tokens, start=1):
        request.input_ids_BL[place, position] = token
    return request


def assert_whole(found: list[bytes], request: Request) -> None:
    """They are the whole teacher's rows: to the bit, as from any batch of 16 filled-up rows (test_compute)."""
    _, whole = teacher()
    assert found == whole(request, SPEC)


def gone(pids: list[int | None]) -> bool:
    return not any(
        pid is not None and psutil.pid_exists(pid) and psutil.Process(pid).status() != "zombie"
        for pid in pids
    )


def test_they_end_and_start_together(tmp_path: Path) -> None:
    with replica(tmp_path) as found:
        about = found.process.start()
        assert about.items() >= teacher()[1].describe().items()
        assert_whole(found.process(request_of(), SPEC), request_of())
        assert found.attempts.newest() == 1
        number = 1
        for harm, place in ((DIES, -1), (STOPS, -1)):
            before = found.pids
            assert_whole(found.process(request_of(harm, place=place), SPEC), request_of(harm, place=place))
            number += 1
            assert found.attempts.newest() == number, harm
            assert gone(before), harm
            assert not set(before) & set(found.pids), harm
        for victim, harm in ((0, signal.SIGKILL), (1, signal.SIGKILL), (1, signal.SIGSTOP)):
            before = found.pids
            os.kill(before[victim] or 0, harm)  # between two questions
            assert_whole(found.process(request_of(), SPEC), request_of())
            number += 1
            assert found.attempts.newest() == number, (victim, harm)
            assert gone(before), (victim, harm)


def test_what_fails_inside_one_members_model_is_the_replicas_answer(tmp_path: Path) -> None:
    with replica(tmp_path) as found:
        found.process.start()
        for harm, place, error, words in (
            (NO_MEMORY, -1, MemoryError, "too many rows"),
            (WRONG, 0, RuntimeError, "ValueError: this row is wrong"),
        ):
            before = found.pids
            with pytest.raises(error, match=words):
                found.process(request_of(harm, place=place), SPEC)
            assert_whole(found.process(request_of(), SPEC), request_of())
            assert gone(before)
        assert found.process.restarts == 0
        assert found.attempts.newest() == 3


def test_one_that_rests_frees_both_devices(tmp_path: Path) -> None:
    with replica(tmp_path) as found:
        found.process.start()
        before = found.pids
        found.process.stop()
        wait_until(lambda: gone(before), what="both workers to end", timeout_s=30)
        assert found.attempts.broken(1) is None, "they were let go, not lost"
        assert_whole(found.process(request_of(), SPEC), request_of())


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("refused", r"rank 2: teacher\.path does not exist"),
        ("another", "teacher.path must be one model on all nodes"),
    ],
)
def test_a_member_that_cannot_load_the_teacher_is_the_users_error(
    tmp_path: Path, path: str, words: str
) -> None:
    with replica(tmp_path, path) as found:
        with pytest.raises(UserError, match=words):
            found.process.start()
        wait_until(lambda: gone(found.pids), what="both workers to end", timeout_s=30)

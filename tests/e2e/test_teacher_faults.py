"""Teachers that die, hang and are replaced while a run goes on: the same samples, the same weights.

DISTILL_FAULTS: how many faults (`make faults`); the kinds take turns. Without it one of each, in a run of 100 steps.
"""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from tiny import Started, World, port_is_free, running, start_ranks, state, trace, wait_until

from e2e.conftest import Reference, shared_memory
from e2e.test_interrupted import arguments_of, assert_same_run, await_step

FAULTS = int(os.environ.get("DISTILL_FAULTS", "0"))
STUDENTS, TEACHERS = 2, 2
EPOCH = 50
# A worker restarts in seconds, most of them imports; steps of the tiny model take some milliseconds.
HEALS_WITHIN_S = 120.0
pytestmark = pytest.mark.timeout(600 + 60 * FAULTS)


def child_of(process: psutil.Process) -> psutil.Process | None:
    """The one process that ``process`` started; None while there is none."""
    try:
        return next(iter(process.children()), None)
    except psutil.NoSuchProcess:
        return None


def host_of(ranks: Started, teacher: int) -> psutil.Process | None:
    return child_of(psutil.Process(ranks.processes[STUDENTS + teacher].pid))


def worker_of(ranks: Started, teacher: int) -> psutil.Process | None:
    host = host_of(ranks, teacher)
    return None if host is None else child_of(host)


def hit(process: psutil.Process | None, number: signal.Signals) -> psutil.Process:
    assert process is not None, "it is not there to be hit"
    process.send_signal(number)
    return process


def inject(kind: str, ranks: Started, teacher: int) -> list[psutil.Process]:
    """Do it to ``teacher``; the processes that must be gone and replaced."""
    if kind == "worker killed":
        return [hit(worker_of(ranks, teacher), signal.SIGKILL)]
    if kind == "worker stopped":
        return [hit(worker_of(ranks, teacher), signal.SIGSTOP)]
    if kind == "host killed":
        return [hit(host_of(ranks, teacher), signal.SIGKILL)]
    if kind == "host stopped":
        return [hit(host_of(ranks, teacher), signal.SIGSTOP)]
    return [hit(host_of(ranks, each), signal.SIGKILL) for each in range(TEACHERS)]


KINDS = ("worker killed", "host killed", "worker stopped", "all hosts killed", "host stopped")


@contextmanager
def held(ranks: Started) -> Iterator[None]:
    """The students stand still: their steps take milliseconds, a teacher's next host some seconds."""
    students = [psutil.Process(process.pid) for process in ranks.processes[:STUDENTS]]
    for student in students:
        student.suspend()
    try:
        yield
    finally:
        for student in students:
            student.resume()


def last(pattern: str, log: Path) -> str:
    """The last match of ``pattern`` in ``log``; empty where there is none."""
    text = log.read_text(encoding="utf-8") if log.is_file() else ""
    return next(reversed(re.findall(pattern, text)), "")


def is_loaded(ranks: Started, logs: Path, teacher: int) -> bool:
    """Whether that teacher's worker can answer."""
    worker = worker_of(ranks, teacher)
    loaded = last(r"worker (\d+) has loaded", logs / f"rank-{STUDENTS + teacher:05d}-host.log")
    return worker is not None and str(worker.pid) == loaded


def is_met(logs: Path) -> bool:
    """Whether all teachers are in the world that stands."""
    return last(r"world \d+: (.*)", logs / "rank-00000.log").count("teacher") == TEACHERS


def heal(ranks: Started, logs: Path) -> None:
    """Return when every teacher can answer again."""
    with held(ranks):
        for teacher in range(TEACHERS):
            wait_until(
                lambda teacher=teacher: is_loaded(ranks, logs, teacher),
                what=f"teacher {teacher} to be loaded",
                timeout_s=HEALS_WITHIN_S,
            )
    wait_until(lambda: is_met(logs), what="all to meet", timeout_s=HEALS_WITHIN_S)


def test_faults_change_nothing(world: World, reference: Reference, tmp_path: Path) -> None:
    number = FAULTS or len(KINDS)
    epochs = max(2, -(-number * 8 // EPOCH))
    run_dir, undisturbed, before = tmp_path / "run", reference.run_dir, shared_memory()
    length = f"train.epochs={epochs}"
    if epochs > 2:
        undisturbed = tmp_path / "undisturbed"
        alone = arguments_of(world, undisturbed, length, "cluster.teachers=0")
        with running(start_ranks(alone, size=STUDENTS, logs=tmp_path / "logs-undisturbed")) as ranks:
            assert ranks.wait() == [0] * STUDENTS, ranks.text()
    # without a cache every step needs every teacher
    more = (
        f"cluster.teachers={TEACHERS}",
        "teacher.cache_mib=0",
        "teacher.deadline_s=6",
        "teacher.patience_s=300",
        "teacher.prefetch=1",
    )
    arguments = arguments_of(world, run_dir, length, *more)
    steps, logs = epochs * EPOCH, run_dir / "logs"
    with running(start_ranks(arguments, size=STUDENTS + TEACHERS, logs=tmp_path / "logs")) as ranks:
        for fault in range(number):
            await_step(ranks, run_dir, (fault + 1) * steps // (number + 2))
            heal(ranks, logs)
            assert len(trace(run_dir)) < steps, "the run ended before the fault"
            gone = inject(KINDS[fault % len(KINDS)], ranks, fault // len(KINDS) % TEACHERS)
            wait_until(
                lambda gone=gone: not any(p.is_running() and p.status() != "zombie" for p in gone),
                what=f"{KINDS[fault % len(KINDS)]} to be noticed",
                timeout_s=HEALS_WITHIN_S,
            )
        assert ranks.wait(HEALS_WITHIN_S + number) == [0] * (STUDENTS + TEACHERS), ranks.text()
    assert_same_run(run_dir, undisturbed)
    assert state(run_dir)["state"] == "done"
    assert ranks.alive() == []
    assert shared_memory() <= before
    assert port_is_free(ranks.port)
    log = "".join(path.read_text(encoding="utf-8") for path in (run_dir / "logs").glob("rank-0000[0-3]*.log"))
    assert "Traceback" not in log
    assert log.count("its host") >= 2 * sum(
        kind.startswith("all") for kind in (KINDS[n % len(KINDS)] for n in range(number))
    )

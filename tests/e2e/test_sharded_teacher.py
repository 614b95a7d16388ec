"""A teacher whose weights lie on two ranks: the run of a whole one, also while members die and hang."""

from __future__ import annotations

import json
import re
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import (
    REPOSITORY,
    Started,
    World,
    environment,
    free_port,
    launch,
    port_is_free,
    running,
    start,
    start_ranks,
    state,
    trace,
    wait_until,
)

from e2e.conftest import Reference, shared_memory
from e2e.harmed_teachers import child_of
from e2e.test_interrupted import arguments_of, assert_same_run, await_step

pytestmark = pytest.mark.timeout(900)
STUDENTS, LEADER, FOLLOWER = 2, 2, 3
SHARDED = ("cluster.teachers=2", "teacher.shards=2")
HEALS_WITHIN_S = 180.0


def hit(process: psutil.Process | None, number: signal.Signals) -> psutil.Process:
    assert process is not None, "it is not there to be hit"
    process.send_signal(number)
    return process


def last(pattern: str, log: Path) -> str:
    """The last match of ``pattern`` in ``log``; empty where there is none."""
    text = log.read_text(encoding="utf-8") if log.is_file() else ""
    return next(reversed(re.findall(pattern, text)), "")


def log_of(run_dir: Path) -> str:
    return "".join(path.read_text(encoding="utf-8") for path in sorted((run_dir / "logs").glob("*.log")))


def test_the_run_of_a_whole_teacher(world: World, reference: Reference, tmp_path: Path) -> None:
    run_dir, before = tmp_path / "run", shared_memory()
    with running(
        start_ranks(arguments_of(world, run_dir, *SHARDED), size=4, logs=tmp_path / "logs")
    ) as ranks:
        assert ranks.wait() == [0, 0, 0, 0], ranks.text()
    assert_same_run(run_dir, reference.run_dir)
    summary = json.loads((run_dir / "summary.json").read_text(encoding="utf-8"))
    assert summary["world"] == {"students": 2, "teachers": 2}
    assert state(run_dir)["state"] == "done"
    log = log_of(run_dir)
    assert "Traceback" not in log
    assert log.count("of 2 of the teacher is loaded") == 2, "each member loads once"
    assert not any(" WARNING " in line and "attempt" in line for line in log.splitlines())
    assert ranks.alive() == []
    assert shared_memory() <= before
    assert port_is_free(ranks.port)


def leaders_host(ranks: Started) -> psutil.Process | None:
    return child_of(psutil.Process(ranks.processes[LEADER].pid))


def leaders_worker(ranks: Started) -> psutil.Process | None:
    host = leaders_host(ranks)
    return None if host is None else child_of(host)


def followers_worker(ranks: Started) -> psutil.Process | None:
    return child_of(psutil.Process(ranks.processes[FOLLOWER].pid))


FAULTS: tuple[tuple[str, Callable[[Started], psutil.Process | None], signal.Signals], ...] = (
    ("leader's worker killed", leaders_worker, signal.SIGKILL),
    ("follower's worker stopped", followers_worker, signal.SIGSTOP),
    ("leader's host killed", leaders_host, signal.SIGKILL),
    ("follower's worker killed", followers_worker, signal.SIGKILL),
)


@contextmanager
def held(ranks: Started) -> Iterator[None]:
    """Student 1 stands still, and student 0 waits for it: in that one lives the store through which members meet."""
    student = psutil.Process(ranks.processes[1].pid)
    student.suspend()
    try:
        yield
    finally:
        student.resume()


def is_loaded(ranks: Started, logs: Path) -> bool:
    """Whether the leader's worker can answer; it loads when all members do."""
    worker = leaders_worker(ranks)
    loaded = last(r"worker (\d+) has loaded", logs / f"rank-{LEADER:05d}-host.log")
    return worker is not None and str(worker.pid) == loaded and followers_worker(ranks) is not None


def test_members_that_die_and_hang_change_nothing(world: World, reference: Reference, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    # without a cache every step needs the teacher
    more = (
        *SHARDED,
        "teacher.cache_mib=0",
        "teacher.deadline_s=6",
        "teacher.patience_s=300",
        "teacher.prefetch=1",
    )
    with running(start_ranks(arguments_of(world, run_dir, *more), size=4, logs=tmp_path / "logs")) as ranks:
        for number, (name, victim, harm) in enumerate(FAULTS, start=1):
            await_step(ranks, run_dir, 18 * number)
            with held(ranks):
                wait_until(
                    lambda: is_loaded(ranks, run_dir / "logs"), what=f"the teacher before: {name}",
                    timeout_s=HEALS_WITHIN_S,
                )  # fmt: skip
            assert len(trace(run_dir)) < 100, "the run ended before the fault"
            members = [leaders_worker(ranks), followers_worker(ranks)]
            gone = [hit(victim(ranks), harm), *(member for member in members if member is not None)]
            wait_until(
                lambda gone=gone: not any(p.is_running() and p.status() != "zombie" for p in gone),
                what=f"{name}: both members to end", timeout_s=HEALS_WITHIN_S,
            )  # fmt: skip
        assert ranks.wait(HEALS_WITHIN_S) == [0, 0, 0, 0], ranks.text()
    assert_same_run(run_dir, reference.run_dir)
    log = log_of(run_dir)
    assert "Traceback" not in log
    # on a busy machine one may have been too late for its deadline besides
    assert log.count("of 2 of the teacher is loaded") >= 2 * (1 + len(FAULTS)), "all members, at every fault"
    assert ranks.alive() == []


def test_a_stop_ends_all_members_in_good_order(world: World, tmp_path: Path) -> None:
    arguments = arguments_of(world, tmp_path / "run", *SHARDED)
    with running(start_ranks(arguments, size=4, logs=tmp_path / "logs-1")) as ranks:
        await_step(ranks, tmp_path / "run", 15)
        for process in ranks.processes:
            process.send_signal(signal.SIGTERM)
        assert ranks.wait() == [75, 75, 75, 75], ranks.text()
    assert state(tmp_path / "run")["state"] == "stopped"
    assert "Traceback" not in log_of(tmp_path / "run")


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (
            ["cluster.teachers=3", "teacher.shards=2"],
            ["teacher.shards = 2", "cluster.teachers=3", "multiple of 2"],
        ),
        (["cluster.teachers=0", "teacher.shards=2"], ["teacher.shards", "cluster.teachers=0 has none"]),
        (["cluster.teachers=0", "teacher.offload=true"], ["teacher.offload", "cluster.teachers=0 has none"]),
    ],
)
def test_refused(world: World, tmp_path: Path, more: list[str], words: list[str]) -> None:
    done = launch("train.py", world.student(tmp_path / "run", "method=kd", *more), logs=tmp_path / "logs")
    assert done.processes[0].returncode == 2
    text = done.stderr()
    assert text.count("error: ") == 1, text
    assert "Traceback" not in text
    for word in words:
        assert word in text, text


def test_members_with_different_models_are_refused(world: World, tmp_path: Path) -> None:
    """A node may keep its copy elsewhere, and it may be another one."""
    other, run_dir, port = tmp_path / "other", tmp_path / "run", free_port()
    other.mkdir()
    for path in (world.teacher_run / "model").iterdir():
        (other / path.name).write_bytes(path.read_bytes())
    weights = load_file(other / "model.safetensors")
    name = next(iter(weights))
    save_file(
        {**weights, name: torch.zeros_like(weights[name])}, other / "model.safetensors", {"format": "pt"}
    )
    arguments = world.student(run_dir, "method=kd", *SHARDED)
    paths = [[], [], [], [f"teacher.path={other}", f"student.path={world.teacher_run}/model"]]
    command = [sys.executable, str(REPOSITORY / "launcher" / "train.py"), *arguments]
    environments = [
        environment(
            RANK=str(rank), WORLD_SIZE="4", LOCAL_RANK=str(rank), LOCAL_SIZE="4", MASTER_ADDR="127.0.0.1",
            MASTER_PORT=str(port),
        )
        for rank in range(4)
    ]  # fmt: skip
    started = start([[*command, *path] for path in paths], environments, logs=tmp_path / "logs", port=port)
    with running(started) as ranks:
        assert ranks.wait() == [2, 2, 2, 2], ranks.text()
    text = "".join(ranks.stderr(number) for number in range(4))
    assert text.count("error: ") == 1, ranks.text()
    assert "teacher.path must be one model on all nodes" in text
    assert "Traceback" not in text

"""Two replicas of two members each, which end and start again in turns: the run of one whole teacher. `make faults`."""

from __future__ import annotations

import re
import signal
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from tiny import Started, World, running, start_ranks, state, trace, wait_until

from e2e.conftest import Reference
from e2e.harmed_teachers import HEALS_WITHIN_S, child_of
from e2e.test_interrupted import arguments_of, assert_same_run, await_step
from e2e.test_sharded_teacher import held, hit, last, log_of

pytestmark = pytest.mark.timeout(1800)
LEADERS, RANKS = (2, 4), 6
SHARDED = (
    "cluster.teachers=4",
    "teacher.shards=2",
    "teacher.cache_mib=0",  # every step needs a teacher
    "teacher.deadline_s=6",
    "teacher.patience_s=300",
    "teacher.prefetch=1",
)


def child_of_rank(ranks: Started, rank: int) -> psutil.Process | None:
    """A leader's host, a follower's worker."""
    return child_of(psutil.Process(ranks.processes[rank].pid))


def leaders_worker(ranks: Started, leader: int) -> psutil.Process | None:
    return child_of(child_of_rank(ranks, leader))


def are_loaded(ranks: Started, logs: Path) -> bool:
    """Whether every replica can answer; its members load together."""
    workers = [leaders_worker(ranks, leader) for leader in LEADERS]
    loaded = [last(r"worker (\d+) has loaded", logs / f"rank-{leader:05d}-host.log") for leader in LEADERS]
    return [str(worker.pid) for worker in workers if worker is not None] == loaded


def leaders_host(ranks: Started, leader: int) -> psutil.Process | None:
    return child_of_rank(ranks, leader)


def followers_worker(ranks: Started, leader: int) -> psutil.Process | None:
    return child_of_rank(ranks, leader + 1)


FAULTS: tuple[tuple[str, int, Callable[[Started, int], psutil.Process | None], signal.Signals], ...] = (
    ("the first one's follower killed", LEADERS[0], followers_worker, signal.SIGKILL),
    ("the second one's host killed", LEADERS[1], leaders_host, signal.SIGKILL),
    ("the first one's worker stopped", LEADERS[0], leaders_worker, signal.SIGSTOP),
)


def test_replicas_that_die_and_hang_in_turns_change_nothing(
    world: World, reference: Reference, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    logs = run_dir / "logs"
    arguments = arguments_of(world, run_dir, *SHARDED)
    with running(start_ranks(arguments, size=RANKS, logs=tmp_path / "logs")) as ranks:
        for number, (name, leader, victim, harm) in enumerate(FAULTS, start=1):
            await_step(ranks, run_dir, 20 * number)
            with held(ranks):
                wait_until(
                    lambda: are_loaded(ranks, logs),
                    what=f"both replicas before: {name}",
                    timeout_s=HEALS_WITHIN_S,
                )
            seen = len(trace(run_dir))
            assert seen < 80, "the run ended before the fault"
            harmed = leaders_worker(ranks, leader), followers_worker(ranks, leader)
            hit(victim(ranks, leader), harm)
            # two steps may have their signals already
            wait_until(
                lambda seen=seen: len(trace(run_dir)) > seen + 3,
                what=f"{name}: steps to go on",
                timeout_s=HEALS_WITHIN_S,
            )
            wait_until(
                lambda harmed=harmed: (
                    not any(member is not None and member.is_running() for member in harmed)
                ),
                what=f"{name}: its members to end",
                timeout_s=HEALS_WITHIN_S,
            )
        assert ranks.wait(HEALS_WITHIN_S) == [0] * RANKS, ranks.text()
    assert_same_run(run_dir, reference.run_dir)
    assert state(run_dir)["state"] == "done"
    assert "Traceback" not in log_of(run_dir)
    for leader in LEADERS:
        text = (logs / f"rank-{leader:05d}.log").read_text(encoding="utf-8")
        (found,) = re.findall(r"taught: answered (\d+)", text)
        assert int(found) > 0
    assert ranks.alive() == []

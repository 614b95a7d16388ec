"""A signal to a single rank, at any moment: all end with 75, the job is requeued, and in the end nothing was lost."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from e2e.conftest import TRACED, Reference
from e2e.test_interrupted import assert_same_run
from tiny import World, state, trace, wait_until

from cluster.jobs import JOB_LIMIT_S, Job, submit
from cluster.slurm import Slurm

pytestmark = [pytest.mark.timeout(2400), pytest.mark.whole_cluster]


class Start:
    """One start of the job: what has happened since the one before it."""

    def __init__(self, job: Job) -> None:
        self.job, self.steps = job, len(trace(job.run_dir))
        self._read = {path: path.stat().st_size for path in (job.run_dir / "logs").glob("*.log")}

    def logged(self, name: str, text: str) -> bool:
        """Whether ``text`` stands in that log, of this start."""
        path = self.job.run_dir / "logs" / f"{name}.log"
        if not path.exists():
            return False
        with path.open("rb") as file:
            file.seek(self._read.get(path, 0))
            return text.encode() in file.read()

    def runs(self, rank: int) -> bool:
        """Whether that rank's Python was started."""
        try:
            return bool(self.job.process(rank))
        except (AssertionError, psutil.NoSuchProcess):
            return False

    def saves(self) -> bool:
        """Whether a checkpoint is being written, in mid-run."""
        return bool(list((self.job.run_dir / "checkpoints").glob(".step-*.tmp")))


# (when, by which rank, which signals)
USR1, TERM = signal.SIGUSR1, signal.SIGTERM
MOMENTS: tuple[tuple[str, Callable[[Start], bool], int, tuple[signal.Signals, ...]], ...] = (
    ("a student imports", lambda now: True, 1, (TERM,)),
    ("a teacher loads", lambda now: now.logged("rank-00002-host", "serves as teacher2"), 2, (USR1,)),
    ("the world stands", lambda now: now.logged("rank-00000", "world 0:"), 0, (USR1, USR1)),
    ("a step", lambda now: len(trace(now.job.run_dir)) > now.steps + 5, 2, (TERM, TERM)),
    ("evaluation", lambda now: now.logged("rank-00000", "service_watch: teachers:"), 1, (USR1, TERM)),
    (
        "a checkpoint",
        lambda now: len(trace(now.job.run_dir)) > now.steps + 5 and now.saves(),
        0,
        (USR1, TERM),
    ),
)


def test_a_signal_at_any_moment(slurm: Slurm, world: World, reference: Reference, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    arguments = world.student(
        run_dir, "method=gkd_cls", *TRACED, "cluster.placement=nodes", "train.checkpoint_every=2"
    )
    job = submit(slurm, run_dir, *arguments, options=("--nodes=3",))
    for number, (name, has_come, rank, signals) in enumerate(MOMENTS):
        now = Start(job)
        wait_until(lambda now=now, rank=rank: now.runs(rank), what=f"rank {rank}", timeout_s=JOB_LIMIT_S)  # type: ignore[misc]
        process = job.process(rank)
        wait_until(lambda now=now, come=has_come: come(now), what=name, timeout_s=JOB_LIMIT_S, every_s=0.001)  # type: ignore[misc]
        for sent in signals:
            process.send_signal(sent)
            time.sleep(0.05)
        slurm.await_(
            lambda restarts=number + 1: job.restarts == restarts,  # type: ignore[misc]
            what=f"the requeue of a job that was stopped while: {name}", timeout_s=120,
        )  # fmt: skip
        verdict = state(run_dir)
        assert (verdict["state"], verdict["resumable"]) == ("stopped", True), (name, verdict)
        assert "by a signal" in verdict["reason"], (name, verdict)
    assert job.await_end() == "COMPLETED", job.text()
    assert job.restarts == len(MOMENTS)
    assert_same_run(run_dir, reference.run_dir)

"""A job that reaches its time limit saves before it, goes back to the queue, and ends as if nothing had been."""

from __future__ import annotations

from pathlib import Path

import pytest
from e2e.conftest import TRACED, Reference
from e2e.test_interrupted import assert_same_run, newest_checkpoint
from tiny import World, state, trace

from cluster.jobs import submit
from cluster.slurm import Slurm

pytestmark = [pytest.mark.timeout(1800), pytest.mark.whole_cluster]


@pytest.mark.parametrize(
    ("options", "margin_s", "reason"),
    [
        # Slurm sends it up to a minute early
        (("--time=4", "--signal=USR1@60"), 0, "stopped by a signal after"),
        (("--time=4", "--signal=USR1@1"), 70, "stopped before the job's time limit after"),
    ],
    ids=["signal", "clock"],
)
def test_a_checkpoint_comes_before_the_limit(
    slurm: Slurm,
    world: World,
    reference: Reference,
    tmp_path: Path,
    options: tuple[str, ...],
    margin_s: int,
    reason: str,
) -> None:
    run_dir = tmp_path / "run"
    arguments = world.student(
        run_dir, "method=gkd_cls", *TRACED, "cluster.placement=nodes", f"cluster.end_margin_s={margin_s}",
        "teacher.deadline_s=400", "teacher.patience_s=400", "teacher.cache_mib=0",
    )  # fmt: skip
    job = submit(slurm, run_dir, *arguments, options=("--nodes=3", *options))
    job.await_step(24)
    # the run takes a quarter of a minute: it has to be kept from ending before its time is up
    job.process(2, "teacher_worker").suspend()
    before = job.restarts  # more than none where the machine is so slow that the time was up before
    slurm.await_(lambda: job.restarts > before, what="the requeue", timeout_s=300)
    verdict = state(run_dir)
    assert (verdict["state"], verdict["resumable"]) == ("stopped", True)
    assert verdict["reason"].startswith(reason), verdict
    stopped_at, _ = newest_checkpoint(run_dir)
    assert 24 <= stopped_at == len(trace(run_dir)) < 100
    assert job.await_end() == "COMPLETED", job.text()
    assert_same_run(run_dir, reference.run_dir)

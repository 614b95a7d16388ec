"""A job that is told to stop goes back to the queue and ends as if nothing had been."""

from __future__ import annotations

from pathlib import Path

import pytest
from e2e.conftest import TRACED, Reference
from e2e.test_interrupted import assert_same_run, newest_checkpoint
from tiny import World, state, trace

from cluster.jobs import copy_checkout, submit
from cluster.slurm import Slurm

pytestmark = pytest.mark.timeout(900)


def test_usr1_requeues_and_the_weights_are_the_same(
    slurm: Slurm, world: World, reference: Reference, tmp_path: Path
) -> None:
    checkout, run_dir = copy_checkout(tmp_path / "checkout"), tmp_path / "run"
    arguments = world.student(run_dir, "method=gkd_cls", *TRACED, "cluster.placement=nodes")
    job = submit(slurm, run_dir, *arguments, checkout=checkout, options=("--nodes=3",))
    job.await_step(24)
    # the job has its own copy: what is edited now changes nothing
    (checkout / "launcher" / "train.py").write_text("raise SystemExit('edited')\n", encoding="utf-8")
    (tmp_path / "run.yaml").write_text("method: none\n", encoding="utf-8")
    slurm.run("scancel", "--signal=USR1", job.number)
    slurm.run("scancel", "--signal=USR1", job.number)  # a second one changes nothing
    slurm.await_(lambda: job.restarts == 1, what="the requeue", timeout_s=120)
    stopped_at, _ = newest_checkpoint(run_dir)
    assert 24 <= stopped_at == len(trace(run_dir)) < 100
    verdict = state(run_dir)
    assert (verdict["state"], verdict["resumable"]) == ("stopped", True)
    assert "signal" in verdict["reason"]
    assert job.await_end() == "COMPLETED", job.text()
    assert job.restarts == 1
    assert_same_run(run_dir, reference.run_dir)
    out = {path.name for path in (run_dir / "logs").glob("rank-*.out")}
    assert out == {f"rank-{rank:05d}.out" for rank in range(3)}
    log = (run_dir / "logs" / "rank-00000.log").read_text(encoding="utf-8")
    assert f"resumed from {run_dir}/checkpoints/step-{stopped_at:08d}" in log

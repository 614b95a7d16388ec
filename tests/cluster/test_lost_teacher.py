"""Under --no-kill the loss of a teacher's node costs the run nothing but its teacher."""

from __future__ import annotations

from pathlib import Path

import pytest
from e2e.conftest import TRACED, Reference
from e2e.test_interrupted import assert_same_run
from tiny import World, state, trace

from cluster.jobs import submit
from cluster.slurm import Slurm

pytestmark = [pytest.mark.timeout(1200), pytest.mark.whole_cluster]


def test_the_run_goes_on_with_the_other_teacher(
    slurm: Slurm, world: World, reference: Reference, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    arguments = world.student(
        run_dir, "method=gkd_cls", *TRACED, "cluster.placement=nodes", "cluster.teachers=2", "teacher.cache_mib=0",
        "teacher.deadline_s=400", "teacher.patience_s=400",
    )  # fmt: skip
    job = submit(slurm, run_dir, *arguments, options=("--nodes=4", "--no-kill"))
    job.await_step(24)
    lost = slurm.run("scontrol", "show", "hostnames", slurm.job(job.number)["NodeList"]).split()[3]
    slurm.kill_node(lost)
    try:
        # the run would end before Slurm notices the loss
        worker = job.process(2, "teacher_worker")
        worker.suspend()
        slurm.await_(lambda: slurm.states()[lost].startswith("down"), what="the loss", timeout_s=120)
        assert len(trace(run_dir)) < 100
        worker.resume()
        assert job.await_end() == "COMPLETED", job.text()
        assert job.restarts == 0
    finally:
        slurm.repair_node(lost)
    assert f"Node failure on {lost}" in job.text()
    assert state(run_dir)["state"] == "done"
    assert_same_run(run_dir, reference.run_dir)

"""A node that loses its power in mid-run: Slurm takes the job back, and it ends on other nodes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path

import pytest
from e2e.conftest import TRACED, Reference
from e2e.test_interrupted import assert_same_run, newest_checkpoint
from tiny import World, state, trace

from cluster.jobs import submit
from cluster.slurm import Slurm

pytestmark = [pytest.mark.timeout(1200), pytest.mark.whole_cluster]


@contextmanager
def without(slurm: Slurm, node: str) -> Iterator[None]:
    """The block runs on a cluster in which nothing starts on ``node``."""
    slurm.run("scontrol", "update", f"NodeName={node}", "State=drain", "Reason=test")
    try:
        yield
    finally:
        slurm.run("scontrol", "update", f"NodeName={node}", "State=resume")


@pytest.mark.parametrize("victim", [0, 1, 2], ids=["head", "student", "teacher"])
def test_a_spare_node_takes_over(
    slurm: Slurm, world: World, reference: Reference, tmp_path: Path, victim: int
) -> None:
    run_dir = tmp_path / "run"
    arguments = world.student(run_dir, "method=gkd_cls", *TRACED, "cluster.placement=nodes")
    job = submit(slurm, run_dir, *arguments, options=("--nodes=3",))
    job.await_step(24)
    lost = slurm.run("scontrol", "show", "hostnames", slurm.job(job.number)["NodeList"]).split()[victim]
    slurm.kill_node(lost)
    try:
        slurm.await_(lambda: job.restarts == 1, what="the requeue", timeout_s=120)
        assert newest_checkpoint(run_dir)[0] < 100
        assert slurm.states()[lost].startswith("down")
        assert job.await_end() == "COMPLETED", job.text()
    finally:
        slurm.repair_node(lost)
    assert lost not in slurm.run("scontrol", "show", "hostnames", slurm.job(job.number)["NodeList"]).split()
    assert state(run_dir)["state"] == "done"
    assert_same_run(run_dir, reference.run_dir)


def test_without_a_spare_it_goes_on_with_fewer_students(
    slurm: Slurm, world: World, reference: Reference, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    arguments = world.student(run_dir, "method=gkd_cls", *TRACED, "cluster.placement=nodes")
    with without(slurm, "n4"):
        job = submit(slurm, run_dir, *arguments, options=("--nodes=2-3",))
        job.await_step(24)
        slurm.kill_node("n2")
        try:
            assert job.await_end() == "COMPLETED", job.text()
            assert job.restarts == 1
        finally:
            slurm.repair_node("n2")
    assert slurm.job(job.number)["NumNodes"] == "2"
    assert state(run_dir)["state"] == "done"
    assert newest_checkpoint(run_dir)[0] == 100

    log = (run_dir / "logs" / "rank-00000.log").read_text(encoding="utf-8")
    (resumed,) = map(int, re.findall(r"resumed from .*/step-0*(\d+)", log))
    assert 20 <= resumed < 100
    alone = [sorted(chain(*line["ids"])) for line in trace(run_dir)][resumed:]
    both = zip(trace(reference.run_dir, 0), trace(reference.run_dir, 1), strict=True)
    assert alone == [sorted(chain(*first["ids"], *second["ids"])) for first, second in both][resumed:]

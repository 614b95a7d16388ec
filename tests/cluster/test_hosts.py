"""One run over two hosts without Slurm: launchers, names, cables. Each test leaves nothing behind."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path

import pytest
from e2e.conftest import Reference
from e2e.test_interrupted import assert_same_run, newest_checkpoint
from tiny import World, state, trace

from cluster.hosts import Hosts
from cluster.runs_over_hosts import APART, TEACHER_AWAY, deepspeed, torchrun, write_config

pytestmark = pytest.mark.timeout(900)
slow = pytest.mark.whole_cluster


def test_a_run_over_two_hosts_outlives_five_seconds_without_a_link(
    hosts: Hosts, world: World, reference: Reference, tmp_path: Path
) -> None:
    config = write_config(world, tmp_path / "run")
    with deepspeed(hosts, config, APART) as job:
        job.await_step(14)
        with hosts.cut("h2"):
            cut_at = len(trace(job.run_dir))
            time.sleep(5)
            # its prefetch may still hold a few
            assert len(trace(job.run_dir)) < 100, "the cable carries nothing"
        assert cut_at < 90
        assert job.await_end() == [0], job.text()
    assert state(job.run_dir)["state"] == "done"
    assert_same_run(job.run_dir, reference.run_dir)


def test_a_teacher_that_is_cut_off_for_good_ends_the_run_by_name(
    hosts: Hosts, world: World, tmp_path: Path
) -> None:
    short = ("teacher.deadline_s=4", "teacher.patience_s=12", "teacher.lease_s=15", "cluster.silence_s=12")
    config = write_config(world, tmp_path / "run", *short)
    with deepspeed(hosts, config, TEACHER_AWAY) as job:
        job.await_step(14)
        with hosts.cut("h2"):
            codes = job.await_end(90)
    assert codes != [0]
    verdict = state(job.run_dir)
    assert (verdict["state"], verdict["resumable"]) == ("stopped", True)
    assert "teacher2 on h2" in verdict["reason"], verdict
    step, _ = newest_checkpoint(job.run_dir)
    assert 14 <= step == len(trace(job.run_dir)) < 100
    assert "teacher 2 left" in job.log(2), job.text()


@slow
def test_students_that_are_cut_apart_name_each_other_and_the_run_goes_on(
    hosts: Hosts, world: World, reference: Reference, tmp_path: Path
) -> None:
    """Each teaches itself: no teacher that leaves, and takes its host with it, comes before."""
    more = ("cluster.teachers=0", "cluster.collective_s=60", "cluster.silence_s=15")
    config, slots = write_config(world, tmp_path / "run", *more), {"h1": 1, "h2": 1}
    with deepspeed(hosts, config, slots) as job:
        job.await_step(24)
        with hosts.cut("h2"):
            assert job.await_end(150) != [0]
    verdict = state(job.run_dir)
    assert (verdict["state"], verdict["resumable"]) == ("stopped", True)
    assert "lost rank 1 (process" in job.log(0), job.text()
    assert "on h2), which gives no sign of life" in job.log(0)
    assert "lost rank 0 (process" in job.log(1), job.text()
    assert "on h1), which gives no sign of life" in job.log(1)
    step, _ = newest_checkpoint(job.run_dir)
    assert 20 <= step < 100
    with deepspeed(hosts, config, slots) as job:
        assert job.await_end() == [0], job.text()
    assert f"checkpoints/step-{step:08d}" in job.log(0)
    assert_same_run(job.run_dir, reference.run_dir)


@slow
def test_torchrun_gives_the_same_numbers(
    hosts: Hosts, world: World, reference: Reference, tmp_path: Path
) -> None:
    """They meet at the first host's name, which is 127.0.1.1 on that host."""
    config = write_config(world, tmp_path / "run", "cluster.placement=nodes")
    with torchrun(hosts, config, TEACHER_AWAY) as job:
        assert job.await_end() == [0, 0], job.text()
    assert_same_run(job.run_dir, reference.run_dir)


@slow
def test_a_signal_to_the_launcher_stops_all_hosts_and_the_run_goes_on(
    hosts: Hosts, world: World, reference: Reference, tmp_path: Path
) -> None:
    """A launcher that was told the first host's name, and a teacher on every host; then by torchrun."""
    more = ("cluster.teachers=2", "cluster.placement=per_node")
    config = write_config(world, tmp_path / "run", *more)
    with deepspeed(hosts, config, {"h1": 2, "h2": 2}, options=("--master_addr", "h1")) as job:
        job.await_step(24)
        (launcher,) = [one for one in hosts.processes("h1") if "--hostfile" in one.cmdline()]
        launcher.send_signal(signal.SIGTERM)
        assert job.await_end() != [0]
    verdict = state(job.run_dir)
    assert (verdict["state"], verdict["resumable"]) == ("stopped", True)
    assert "signal" in verdict["reason"]
    step, _ = newest_checkpoint(job.run_dir)
    assert 24 <= step == len(trace(job.run_dir)) < 100
    with torchrun(hosts, config, {"h1": 2, "h2": 2}) as job:
        assert job.await_end() == [0, 0], job.text()
    assert_same_run(job.run_dir, reference.run_dir)


@slow
def test_what_cannot_work_is_refused_on_all_hosts(hosts: Hosts, world: World, tmp_path: Path) -> None:
    config = write_config(world, tmp_path / "run", "cluster.teachers=2", "cluster.placement=nodes")
    with deepspeed(hosts, config, TEACHER_AWAY) as job:
        assert job.await_end() != [0]
    said = job.started.stderr()
    assert said.count("error: ") == 1, said
    assert "cluster.teachers=2 of whole nodes: there are nodes of 2, 1 processes; take one of [1]" in said
    verdict = state(job.run_dir)
    assert (verdict["state"], verdict["resumable"]) == ("failed", False)
    assert "whole nodes" in verdict["reason"]


@slow
def test_a_folder_that_the_hosts_do_not_share_is_refused(hosts: Hosts, world: World, tmp_path: Path) -> None:
    config = write_config(world, tmp_path / "run")
    (tmp_path / "run").mkdir()
    hosts.run("h2", "mount", "-t", "tmpfs", "none", str(tmp_path / "run"))
    try:
        with deepspeed(hosts, config, APART) as job:
            assert job.await_end() != [0]
    finally:
        hosts.run("h2", "umount", str(tmp_path / "run"))
    said = job.started.stderr()
    assert "run_dir=" in said
    assert "is not the folder that rank 0 has on h1" in said, said
    assert json.loads((tmp_path / "run" / "state.json").read_text())["state"] == "failed"

"""Several jobs on the same nodes, a heterogeneous job, and the real rows."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from itertools import islice
from pathlib import Path

import pytest
from e2e.conftest import TRACED, Reference
from e2e.test_interrupted import assert_same_run
from tiny import REPOSITORY, World, environment, state, trace

from cluster.jobs import SMALL, Job, submit
from cluster.slurm import Slurm

pytestmark = [pytest.mark.timeout(1200), pytest.mark.whole_cluster]


def test_two_jobs_at_once_on_the_same_nodes(
    slurm: Slurm, world: World, reference: Reference, tmp_path: Path
) -> None:
    jobs: list[Job] = []
    for name in ("a", "b"):
        run_dir = tmp_path / name
        arguments = world.student(run_dir, "method=gkd_cls", *TRACED, "cluster.placement=nodes")
        jobs.append(submit(slurm, run_dir, *arguments, options=("--nodes=3", "--nodelist=n[1-3]")))
    for job in jobs:
        job.await_step(1)
        assert [other.state() for other in jobs] == ["RUNNING", "RUNNING"]
    for job in jobs:
        assert job.await_end() == "COMPLETED", job.text()
        assert job.restarts == 0
        assert slurm.job(job.number)["NodeList"] == "n[1-3]"
        assert_same_run(job.run_dir, reference.run_dir)


def test_a_heterogeneous_job(slurm: Slurm, world: World, reference: Reference, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    arguments = world.student(run_dir, "method=gkd_cls", *TRACED, "cluster.placement=nodes")
    job = submit(
        slurm, run_dir, *arguments, options=("--nodes=1", "--ntasks-per-node=2", ":", *SMALL, "--nodes=1"),
        script="gkd_mnli_het.sh",
    )  # fmt: skip
    job.await_step(24)
    slurm.run("scancel", "--signal=USR1", job.number)
    assert job.await_end() == "COMPLETED", job.text()
    assert job.restarts == 1
    assert_same_run(run_dir, reference.run_dir)
    assert {path.name for path in (run_dir / "logs").glob("*.out")} == {
        f"rank-0000{rank}.out" for rank in range(3)
    }


def test_a_cancelled_job_is_not_requeued(slurm: Slurm, world: World, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    arguments = world.student(run_dir, "method=gkd_cls", *TRACED, "cluster.placement=nodes")
    job = submit(slurm, run_dir, *arguments, options=("--nodes=3",))
    job.await_step(4)
    slurm.run("scancel", job.number)
    assert job.await_end() == "CANCELLED"
    assert job.restarts == 0
    assert not slurm.run("squeue", "--noheader")
    verdict = state(run_dir)
    assert (verdict["state"], verdict["resumable"]) == ("stopped", True), job.text()


def test_submit_starts_what_it_showed(slurm: Slurm, world: World, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    arguments = world.student(
        run_dir, "method=kd", "cluster.teachers=1", "cluster.placement=nodes", "train.max_steps=5"
    )
    options = [f"--sbatch={option}" for option in (*SMALL, "--nodes=3", f"--output={tmp_path}/job-%j.log")]
    command = [
        sys.executable,
        "launcher/submit.py",
        "--config",
        "configs/demo.yaml",
        "--script",
        "slurm/gkd_mnli.sh",
    ]
    done = subprocess.run(
        [*command, *options, *arguments], cwd=REPOSITORY, capture_output=True, text=True, timeout=60, check=False,
        env=slurm.environment(VENV=str(Path(sys.executable).parents[1])),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    job = Job(slurm, json.loads(done.stdout.splitlines()[-1])["job"], run_dir)
    assert "ranks 2         teacher  node 3" in done.stdout
    assert job.await_end() == "COMPLETED", job.text()
    assert json.loads((run_dir / "summary.json").read_text())["world"] == {"students": 2, "teachers": 1}


@pytest.mark.realdata
def test_the_main_job_on_the_real_rows(slurm: Slurm, shared_data: Path, tmp_path: Path) -> None:
    rows, run_dir = tmp_path / "rows", tmp_path / "run"
    rows.mkdir()
    for name, count in (("train.tsv", 2000), ("dev_matched.tsv", 400)):
        with (shared_data / "mnli" / name).open(encoding="utf-8") as source:
            (rows / name).write_text("".join(islice(source, count + 1)), encoding="utf-8")
    common = [f"data.path={rows}", f"data.prepared={tmp_path}/prepared"]
    small = [*common, "train.epochs=1", "batch.size=16", "cluster.device=cpu", "evaluate.saliency=false"]
    for launcher, name, more in (
        ("prepare.py", "gkd_mnli_minilm", common),
        ("train.py", "teacher_mnli_minilm", [*small, f"run_dir={tmp_path}/teacher", "train.max_steps=20"]),
    ):
        command = [sys.executable, f"launcher/{launcher}", "--config", f"configs/{name}.yaml", *more]
        done = subprocess.run(
            command, cwd=REPOSITORY, env=environment(DISTILL_SHARED=str(shared_data.parent)), timeout=600,
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
    job = submit(
        slurm, run_dir, *small, f"teacher.path={tmp_path}/teacher/model", "cluster.teachers=1", "train.max_steps=40",
        "train.trace=true", options=("--nodes=3",), CONFIG="configs/gkd_mnli_minilm.yaml",
        DISTILL_SHARED=str(shared_data.parent),
    )  # fmt: skip
    assert job.await_end() == "COMPLETED", job.text()
    summary = json.loads((run_dir / "summary.json").read_text(encoding="utf-8"))
    assert (summary["task"], summary["steps"], summary["world"]) == (
        "mnli",
        40,
        {"students": 2, "teachers": 1},
    )
    assert len(trace(run_dir, 1)) == 40
    assert (run_dir / "model" / "model.safetensors").is_file()
    shutil.rmtree(run_dir / "jobs")  # a finished run needs none of it

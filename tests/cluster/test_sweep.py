"""launcher/sweep.py on a real Slurm: one array, the first trial pays, a requeue, the table; and under deepspeed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from e2e.test_sweep import share_and_go_on
from e2e.test_teacher_cache import counters_of
from tiny import REPOSITORY, World, state

from cluster.jobs import JOB_LIMIT_S, SMALL, Job
from cluster.slurm import Slurm

pytestmark = [pytest.mark.timeout(1200), pytest.mark.whole_cluster]
# logits of 400 training rows with gradients, and of 60 of dev with and without saliency
ROWS = 520


def sweep(slurm: Slurm, world: World, out: Path) -> dict[str, Any]:
    """The command's JSON line."""
    arguments = world.student(
        out, "method=gkd_cls", "train.epochs=1", "train.trace=true", "cluster.teachers=1"
    )
    options = (*SMALL, "--nodes=2", f"--output={out.parent}/job-%A_%a.log")
    done = subprocess.run(
        [
            sys.executable, "launcher/sweep.py", "--out", str(out), "--grid", "weight.kd=0.3,0.5", "--grid", "seed=1,2",
            "--slurm", "slurm/gkd_mnli.sh", "--parallel", "2", *(f"--sbatch={option}" for option in options),
            *(text for text in arguments if not text.startswith("run_dir=")),
        ],
        cwd=REPOSITORY, capture_output=True, text=True, timeout=120, check=False,
        env=slurm.environment(VENV=str(Path(sys.executable).parents[1])),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_an_array_of_four_pays_its_teacher_once(slurm: Slurm, world: World, tmp_path: Path) -> None:
    out = tmp_path / "sweep"
    first, rest = sweep(slurm, world, out)["jobs"]
    folders = [Path(line) for line in (out / "run_dirs.txt").read_text().splitlines()]
    payer = Job(slurm, first, folders[0])
    others = [Job(slurm, f"{rest}_{number}", folders[number]) for number in (1, 2, 3)]
    payer.await_step(4)
    assert slurm.job(rest)["Reason"] == "Dependency"
    slurm.run("scancel", "--signal=USR1", first)  # at once: its 50 steps take a few seconds
    slurm.await_(lambda: payer.restarts == 1, what="the requeue", timeout_s=JOB_LIMIT_S)
    assert state(folders[0])["state"] == "stopped"
    assert slurm.job(rest)["Reason"] == "Dependency", "a requeued trial has not ended"
    again = sweep(slurm, world, out)
    assert again["jobs"] == [], "what is in the queue is not submitted again"
    assert again["counts"].keys() <= {"running", "queued", "done"}
    for job in (payer, *others):
        assert job.await_end() == "COMPLETED", job.text()
    found = sweep(slurm, world, out)
    assert (found["jobs"], found["counts"]) == ([], {"done": 4})
    summaries = [json.loads((folder / "summary.json").read_text(encoding="utf-8")) for folder in folders]
    assert [summary["signals"]["computed"] for summary in summaries[1:]] == [0, 0, 0]
    assert all(summary["signals"]["rows"] >= ROWS for summary in summaries[1:])
    assert len({json.dumps(summary["splits"]) for summary in summaries}) == 4, "the trials were to differ"
    means = [sum(one["student"]["accuracy"] for one in pair) / 2 for pair in (summaries[:2], summaries[2:])]
    assert found["best"]["mean"] == max(means)
    assert (out / "sweep.csv").read_text(encoding="utf-8").count("\n") == 5


def test_trials_under_deepspeed_s_launcher(world: World, tmp_path: Path) -> None:
    """As tests/e2e does in one process; here a stop has to find the ranks below the launcher's two processes."""
    share_and_go_on(world, tmp_path, launch="deepspeed --num_gpus 2", teachers=1)
    first = tmp_path / "sweep" / "000-kd=0.3"
    summary = json.loads((first / "summary.json").read_text(encoding="utf-8"))
    assert counters_of(first, 1)["computed_rows"] == summary["signals"]["computed"]

"""Jobs of the tests: submitted with the scripts of slurm/, waited for with a deadline."""

from __future__ import annotations

import contextlib
import re
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import psutil
from tiny import REPOSITORY, trace

from cluster.slurm import Slurm

# A run takes 20 s on two free cores and a requeue 15 s more; tests run beside other work.
JOB_LIMIT_S = 240.0
_ENDED = (
    "COMPLETED",
    "FAILED",
    "CANCELLED",
    "TIMEOUT",
    "NODE_FAIL",
    "OUT_OF_MEMORY",
    "BOOT_FAIL",
    "DEADLINE",
)
# One process a node: the machine has few cores. A GPU each, as the scripts ask for.
SMALL = ("--ntasks-per-node=1", "--gpus-per-node=1", "--cpus-per-task=1")


def copy_checkout(folder: Path) -> Path:
    """What a job needs of the repository, to be submitted from and edited."""
    for name in ("distill_dist", "launcher", "slurm", "ds_configs", "configs"):
        shutil.copytree(REPOSITORY / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


@dataclass(frozen=True)
class Job:
    """One submitted run."""

    slurm: Slurm
    number: str
    run_dir: Path

    def state(self) -> str:
        """PENDING, RUNNING, COMPLETED …"""
        return self.slurm.job(self.number)["JobState"]

    @property
    def restarts(self) -> int:
        """How often it was requeued."""
        return int(self.slurm.job(self.number)["Restarts"])

    def await_step(self, step: int) -> None:
        """Return when student 0 has committed ``step`` steps."""
        self.slurm.await_(
            lambda: len(trace(self.run_dir)) >= step or self.state() in _ENDED,
            what=f"step {step} of job {self.number}", timeout_s=JOB_LIMIT_S,
        )  # fmt: skip
        assert len(trace(self.run_dir)) >= step, self.text()

    def await_end(self) -> str:
        """Its last state. AssertionError with its logs when it does not end."""
        try:
            self.slurm.await_(
                lambda: self.state() in _ENDED, what=f"the end of job {self.number}", timeout_s=JOB_LIMIT_S
            )
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.text()}") from None
        return self.state()

    def process(self, rank: int, part: str = "launcher/train.py") -> psutil.Process:
        """That of ``rank`` which runs ``part``, of the start that is under way."""
        found: dict[int, tuple[int, psutil.Process]] = {}
        for process in self.slurm.processes():
            with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                command = " ".join(process.cmdline())
                its_rank = process.environ().get("SLURM_PROCID")
                ours = (
                    process.name().startswith("python") and part in command and str(self.run_dir) in command
                )
                if ours and its_rank == str(rank):
                    found[process.pid] = process.ppid(), process
        # a child that has not started its own program yet looks as its parent does
        own = [process for parent, process in found.values() if parent not in found]
        assert len(own) == 1, (rank, part, found, self.text())
        return own[0]

    def text(self) -> str:
        """What the script and the ranks said."""
        paths = [*self.run_dir.parent.glob(f"job-*{self.number}*.log"), *self.run_dir.glob("logs/*")]
        return "\n".join(
            f"--- {path}\n{path.read_text(encoding='utf-8', errors='replace')[-3000:]}"
            for path in sorted(paths)
        )


def submit(
    slurm: Slurm, run_dir: Path, *arguments: str, options: tuple[str, ...] = (), checkout: Path = REPOSITORY,
    script: str = "gkd_mnli.sh", **variables: str,
) -> Job:  # fmt: skip
    """``sbatch slurm/SCRIPT`` from ``checkout`` with one process a node; the ``arguments`` are the configuration."""
    run_dir.parent.mkdir(parents=True, exist_ok=True)
    config = run_dir.parent / "run.yaml"
    config.write_text("method: gkd_cls\n", encoding="utf-8")
    variables = {"CONFIG": str(config), "VENV": str(Path(sys.executable).parents[1]), **variables}
    said = slurm.run(
        "sbatch", *SMALL, f"--output={run_dir.parent}/job-%j.log", *options, f"slurm/{script}", *arguments,
        cwd=checkout, RUN_DIR=str(run_dir), **variables,
    )  # fmt: skip
    found = re.fullmatch(r"Submitted batch job (\d+)\n", said)
    assert found, said
    return Job(slurm, found[1], run_dir)

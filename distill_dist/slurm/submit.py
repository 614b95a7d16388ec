"""Hand a checked run to sbatch, with its code and configuration frozen."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from distill_dist.config.load import load_config
from distill_dist.config.schema import RunConfig
from distill_dist.errors import UserError
from distill_dist.slurm.freeze import freeze
from distill_dist.slurm.memory import estimate
from distill_dist.slurm.placement import describe, place
from distill_dist.slurm.script import JobScript, choose, read_script

_SBATCH_S = 60.0


@dataclass(frozen=True)
class Submission:
    """A job that can work: the script, its options, and the configuration of each of its tasks."""

    path: Path
    script: JobScript
    options: tuple[str, ...]
    environment: Mapping[str, str]
    runs: tuple[RunConfig, ...]  # one, or one per task of an array

    def text(self) -> str:
        """What will run where, for people."""
        first = self.runs[0]
        seats = place(first, self.script.shape())
        students = sum(not seat.teaches for seat in seats)
        tasks = f" ({len(self.runs)} tasks; the first is shown)" if len(self.runs) > 1 else ""
        memory = "\n".join(estimate(first, students=students))
        absent = "".join(f"\nwarning: {line}" for line in self.absent())
        return f"{self.script.text}\n{first.run_dir}{tasks}\n\n{describe(seats)}\n\n{memory}\n{absent}"

    def absent(self) -> list[str]:
        """What the runs will read and is not here: a job whose nodes do not see it either will fail."""
        prepared = {run.data.prepared for run in self.runs}
        found = [
            f"data.prepared={folder} is not here: the job fails unless its nodes see it (launcher/prepare.py makes it)"
            for folder in sorted(prepared)
            if not (Path(folder) / "manifest.json").is_file()
        ]
        teachers = {run.teacher.path for run in self.runs}
        return found + [
            f"teacher.path={path} is not here: the job fails unless its nodes see it"
            for path in sorted(teachers)
            if _is_folder_name(path) and not os.path.isdir(path)
        ]

    @property
    def run_dirs(self) -> list[str]:
        """One folder per run."""
        return [run.run_dir for run in self.runs]

    def submit(self, checkout: Path) -> str:
        """The job's number. Raises UserError with sbatch's words."""
        if shutil.which("sbatch") is None:
            raise UserError(
                "there is no sbatch here: submit from a login node of a Slurm cluster, or add --dry-run"
            )
        name = time.strftime("%Y%m%d-%H%M%S") + f"-{os.getpid()}"
        twin: Path | None = None
        for run in self.runs:
            folder = Path(run.run_dir) / "jobs" / name
            freeze(run, folder, checkout=checkout, twin=twin)
            twin = folder
        try:
            done = subprocess.run(
                ["sbatch", "--parsable", *self.options, str(self.path)],
                env={**self.environment, "FROZEN": name}, capture_output=True, text=True, timeout=_SBATCH_S,
                check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            # its copy of the code stays: the job may be in the queue all the same
            raise UserError(
                f"sbatch did not answer within {_SBATCH_S:.0f} s: see with `squeue --me` whether the job is in the "
                "queue, and cancel it, before you submit again"
            ) from None
        if done.returncode:
            for run in self.runs:
                _forget(Path(run.run_dir), name)
            raise UserError(f"sbatch refused the job: {' '.join(done.stderr.split())}")
        return done.stdout.strip().partition(";")[0]


def _is_folder_name(path: str) -> bool:
    """Whether it can be no name on the hub, which has one slash at most."""
    return path.startswith(("/", ".")) or (path.count("/") > 1 and "://" not in path)


def _forget(run_dir: Path, name: str) -> None:
    """Remove the copy of a job that is not to be, and the folders that were made for it alone."""
    shutil.rmtree(run_dir / "jobs" / name, ignore_errors=True)
    for folder in (run_dir / "jobs", run_dir):
        with contextlib.suppress(OSError):  # others lie in it
            folder.rmdir()


def prepare_submission(
    path: Path, config_path: Path | None, config: RunConfig, overrides: Sequence[str], options: Sequence[str]
) -> Submission:
    """The script at ``path`` for ``config``, checked. Raises UserError for what cannot work.

    The script's own settings come before ``overrides``.
    """
    script = read_script(path, options)
    if script.array and len(script.parts) > 1:
        raise UserError(f"{path} is a heterogeneous job, of which Slurm takes no array: leave --array away")
    environment = _environment(script, config_path, config, overrides)
    runs = []
    for task in script.array or (None,):
        chosen = choose(script, environment, task=task)
        own = [f"run_dir={chosen.run_dir}"]
        runs.append(load_config(config_path, [*chosen.settings, *overrides, *own]))
    found = Submission(path, script, tuple(options), environment, tuple(runs))
    if len(set(found.run_dirs)) < len(runs):
        raise UserError(
            f"{path}: tasks of the array share run_dir={runs[0].run_dir}: name it by $SLURM_ARRAY_TASK_ID"
        )
    for run in runs:
        place(run, script.shape())
    return found


def script_settings(path: Path, config_path: Path | None) -> tuple[str, ...]:
    """The overrides that the script itself sets, before those of a command line. Raises UserError."""
    return choose(read_script(path), {**_bare(), "CONFIG": str(config_path or "")}, task=0).settings


def prepare_trials(
    path: Path, config_path: Path | None, runs: Mapping[int, RunConfig], options: Sequence[str], *, folders: Path
) -> Submission:  # fmt: skip
    """The script at ``path`` as an array whose tasks are ``runs``, by number. Raises UserError for what cannot work.

    Line n + 1 of the file ``folders`` is the folder of run n.
    """
    script = read_script(path, options)
    if len(script.parts) > 1:
        raise UserError(
            f"{path} is a heterogeneous job, of which Slurm takes no array: give --slurm another script"
        )
    for run in runs.values():
        place(run, script.shape())
    environment = {**_bare(), "CONFIG": str(config_path or ""), "SWEEP": str(folders)}
    return Submission(path, script, tuple(options), environment, tuple(runs.values()))


def _bare() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name not in ("CONFIG", "RUN_DIR", "SWEEP")}


def _environment(
    script: JobScript, config_path: Path | None, config: RunConfig, overrides: Sequence[str]
) -> dict[str, str]:
    """What the script's first part reads: CONFIG, and RUN_DIR unless the script is this configuration's own."""
    bare = _bare()
    found = {**bare, "CONFIG": str(config_path or "")}
    own = choose(script, bare, task=min(script.array, default=None)).config
    is_own = config_path is not None and Path(own).resolve() == config_path.resolve()
    if not is_own or any(text.startswith("run_dir=") for text in overrides):
        found["RUN_DIR"] = config.run_dir
    return found

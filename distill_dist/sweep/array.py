"""The trials as a Slurm array: those that are open and not in the queue are submitted, and what was is remembered."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from distill_dist.durable import write_durable, write_json
from distill_dist.errors import UserError
from distill_dist.slurm.submit import Submission, prepare_trials
from distill_dist.sweep.plan import Plan, Trial
from distill_dist.sweep.verdict import Verdict

JOBS, FOLDERS = "jobs.json", "run_dirs.txt"
_SQUEUE_S = 60.0


@dataclass(frozen=True)
class Array:
    """How trials are submitted: ``script`` and ``options`` for sbatch; ``most``: that run at a time, None: any."""

    script: Path
    options: tuple[str, ...]
    base: Path | None
    most: int | None

    def prepare(self, plan: Plan, trials: Sequence[Trial], *more: str) -> Submission:
        """One job of an array of ``trials``. Raises UserError for what cannot work."""
        numbers = ",".join(str(trial.number) for trial in trials)
        array = f"--array={numbers}" + (f"%{self.most}" if self.most else "")
        runs = {trial.number: trial.config for trial in trials}
        return prepare_trials(
            self.script, self.base, runs, [*self.options, array, *more], folders=plan.out.absolute() / FOLDERS
        )

    def submit(
        self, plan: Plan, verdicts: Mapping[int, Verdict], *, retry_failed: bool, checkout: Path
    ) -> list[str]:
        """Numbers of the jobs. The first trials of those that ask the same of a teacher go ahead: they pay.

        The others wait for their end in the queue, whatever end that is. Raises UserError.
        """
        wanted = ("waiting", "stopped", *(("failed",) if retry_failed else ()))
        trials = [trial for trial in plan.trials if verdicts[trial.number].state in wanted]
        if not trials:
            return []
        text = "".join(f"{trial.folder}\n" for trial in plan.trials)
        write_durable(plan.out / FOLDERS, lambda file: file.write_text(text, encoding="utf-8"))
        payers = first_of_groups(plan, verdicts, trials)
        others = [trial for trial in trials if trial not in payers]
        if not payers or not others:
            return [self._submit(plan, trials, checkout)]
        first = self._submit(plan, payers, checkout)
        return [first, self._submit(plan, others, checkout, f"--dependency=afterany:{first}")]

    def _submit(self, plan: Plan, trials: Sequence[Trial], checkout: Path, *more: str) -> str:
        job = self.prepare(plan, trials, *more).submit(checkout)
        jobs = {**_jobs(plan), job: [trial.number for trial in trials]}
        write_json(plan.out / JOBS, jobs)
        return job


def first_of_groups(plan: Plan, verdicts: Mapping[int, Verdict], trials: Sequence[Trial]) -> list[Trial]:
    """Of ``trials`` those that pay: the first of each group of which none is done or on its way."""
    served = {
        trial.group for trial in plan.trials if verdicts[trial.number].state in ("done", "running", "queued")
    }
    found: dict[int, Trial] = {}
    for trial in trials:
        if trial.group is not None and trial.group not in served:
            found.setdefault(trial.group, trial)
    return list(found.values())


def _jobs(plan: Plan) -> dict[str, list[int]]:
    path = plan.out / JOBS
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def queued_trials(plan: Plan) -> set[int]:
    """Numbers of the trials that wait or run in Slurm's queue. Raises UserError where Slurm does not say."""
    jobs = _jobs(plan)
    if not jobs:
        return set()
    if shutil.which("squeue") is None:
        raise UserError(
            f"trials of {plan.out} were submitted to Slurm, and there is no squeue here to ask for them: continue on a "
            f"login node, or remove {plan.out / JOBS} when none is in the queue"
        )
    try:
        done = subprocess.run(
            ["squeue", "--me", "--noheader", "--array", "--format=%F %K"],
            capture_output=True, text=True, timeout=_SQUEUE_S, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise UserError(f"squeue did not answer within {_SQUEUE_S:.0f} s: try again") from None
    if done.returncode:
        raise UserError(f"squeue refused: {done.stderr.strip()}")
    tasks = (line.split() for line in done.stdout.splitlines())
    return {int(task[1]) for task in tasks if len(task) == 2 and task[0] in jobs and task[1].isdigit()}

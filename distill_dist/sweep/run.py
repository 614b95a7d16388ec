"""A planned sweep from its lock to its table."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from distill_dist.comm.roles import assign_roles
from distill_dist.durable import hold_lock, remove_stale, write_durable, write_json
from distill_dist.errors import UserError
from distill_dist.sweep.array import Array, queued_trials
from distill_dist.sweep.plan import Plan, save_plan
from distill_dist.sweep.runner import Runner
from distill_dist.sweep.table import Table
from distill_dist.sweep.trial_process import launched_processes, trial_command
from distill_dist.sweep.verdict import Verdict, read_verdict

TABLE = "sweep.csv"


def say(text: str) -> None:
    """Progress, for people."""
    print(text, file=sys.stderr, flush=True)


def check_world(plan: Plan, launch: str) -> None:
    """Raises UserError where a trial's roles cannot be dealt to the processes that ``launch`` starts."""
    size = launched_processes(launch)
    for trial in plan.trials if size else ():
        assert size is not None
        config = trial.config
        try:
            assign_roles(
                world_size=size, local_size=size, teachers=config.cluster.teachers,
                placement=config.cluster.placement, shards=config.teacher.shards,
            )  # fmt: skip
        except UserError as error:
            raise UserError(f"trial {trial.name} under --launch {launch!r}: {error}") from None


def hold_folder(folder: Path, *, name: str, kind: str) -> None:
    """Make ``folder`` (``name``: how the user gave it) this process's own until it ends. Raises UserError.

    ``kind``: of work, `sweep`, of which another may have it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        holder = hold_lock(folder / ".lock")
    except OSError as error:
        raise UserError(f"{name} {folder} cannot be used: {error.strerror}") from error
    if holder is not None:
        raise UserError(f"{name} {folder} is in use by another {kind} ({holder}): wait for its end")


def claim(plan: Plan) -> None:
    """The sweep's folder is this process's own, and holds the plan. Raises UserError."""
    hold_folder(plan.out, name="--out", kind="sweep")
    for pattern in ("*.json", TABLE, "sweep.md"):
        remove_stale(plan.out, pattern)
    save_plan(plan)


def run_here(
    plan: Plan, launch: str, *, parallel: int, restarts: int, retry_failed: bool, should_stop: Callable[[], bool]
) -> dict[str, Any]:  # fmt: skip
    """Run all trials on this host and return the result. Raises Interrupted, and UserError where all failed."""
    if queued := sorted(queued_trials(plan)):
        raise UserError(f"trials {queued} are in Slurm's queue: wait for them, or scancel them first")
    runner = Runner(
        plan.trials, lambda trial, slot: trial_command(launch, trial, slot=slot),
        parallel=parallel, restarts=restarts, retry_failed=retry_failed, should_stop=should_stop, say=say,
    )  # fmt: skip
    try:
        runner.run()
    finally:
        found = report(plan, verdicts_of(plan, set()))
    return _unless_all_failed(plan, found)


def run_in_queue(plan: Plan, array: Array, *, retry_failed: bool, checkout: Path) -> dict[str, Any]:
    """Submit what is open, and return what is known so far. Raises UserError."""
    verdicts = verdicts_of(plan, queued_trials(plan))
    jobs = array.submit(plan, verdicts, retry_failed=retry_failed, checkout=checkout)
    found = report(plan, verdicts_of(plan, queued_trials(plan)))
    if jobs:
        say(f"submitted as {', '.join(jobs)}; the same command shows how far they are, and goes on")
        return {**found, "jobs": jobs}
    return _unless_all_failed(plan, {**found, "jobs": []})


def verdicts_of(plan: Plan, queued: set[int]) -> dict[int, Verdict]:
    """What became of every trial; ``queued``: numbers of those in Slurm's queue."""
    found = {trial.number: read_verdict(trial.folder) for trial in plan.trials}
    for number in queued & found.keys():
        if found[number].state in ("waiting", "stopped", "failed"):
            found[number] = replace(found[number], state="queued")
    return found


def report(plan: Plan, verdicts: dict[int, Verdict]) -> dict[str, Any]:
    """Write sweep.csv, sweep.md and summary.json, show the table, and return the summary."""
    table = Table(plan.trials, [verdicts[trial.number] for trial in plan.trials], plan.space.fields)
    csv, markdown = table.csv(), table.markdown()
    write_durable(plan.out / TABLE, lambda file: file.write_text(csv, encoding="utf-8"))
    write_durable(plan.out / "sweep.md", lambda file: file.write_text(markdown + "\n", encoding="utf-8"))
    found = {
        "best": table.best(),
        "metric": f"{table.split} {table.metric}",
        "table": str(plan.out / TABLE),
        "trials": len(plan.trials),
        "counts": table.counts(),
        "teacher": {"questions": plan.num_groups, "computed": table.computed()},
    }
    write_json(plan.out / "summary.json", found)
    say(f"{markdown}\n{_best_line(table)}")
    return found


def _best_line(table: Table) -> str:
    group, best = table.best_group(), table.best()
    if group is None or best is None:
        return "best: none yet, for no group of seeds is done as a whole"
    chosen = ", ".join(f"{key}={value}" for key, value in best["overrides"].items())
    return f"best by {table.split} {table.metric}: {chosen or 'all alike'}: {group.says()}; {best['run_dir']}"


def _unless_all_failed(plan: Plan, found: dict[str, Any]) -> dict[str, Any]:
    failed = found["counts"].get("failed", 0)
    if failed == len(plan.trials):
        first = read_verdict(plan.trials[0].folder).reason
        raise UserError(
            f"all {failed} trials failed, {plan.trials[0].name}: {first}. Mend it, and add --retry-failed"
        )
    if failed:
        say(
            f"{failed} of {len(plan.trials)} trials failed; see {found['table']}; --retry-failed runs them again"
        )
    return found

"""Run a grid or a random search over any fields, with one teacher cache and one table; dev alone decides.

python launcher/sweep.py --config configs/gkd_mnli.yaml --grid weight.kd=0.3,0.5 --grid seed=1,2,3 \\
    --out runs/sweep --launch "deepspeed --num_gpus 3" [key=value …]
python launcher/sweep.py --config … --random "train.learning_rate=loguniform(1e-5,1e-3)" --trials 20 --out …
python launcher/sweep.py --sweep FILE.yaml --slurm slurm/gkd_mnli.sh --parallel 4

The same command goes on: what is done stays, what stopped is resumed.
"""

from __future__ import annotations

import argparse
import functools
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from distill_dist.comm.environment import read_job_end
from distill_dist.command_line import launch, named_path
from distill_dist.config.schema import RunConfig
from distill_dist.errors import UserError
from distill_dist.slurm.submit import script_settings
from distill_dist.stop_signal import StopSignal
from distill_dist.sweep.array import Array
from distill_dist.sweep.plan import Plan, make_plan
from distill_dist.sweep.run import check_world, claim, run_here, run_in_queue, say
from distill_dist.sweep.space import build_space
from distill_dist.sweep.sweep_file import SweepFile, read_sweep_file

CHECKOUT = Path(__file__).resolve().parents[1]
EARLIER_S = 10.0  # than the trials would stop before the end of the job that they run in


def main(config: RunConfig, args: argparse.Namespace) -> dict[str, Any]:
    """The best trial, the table's path, and how many trials are in which state."""
    stop, file = StopSignal(), _file(args)
    base, out = args.config or file.config, args.out or file.out
    if out is None:
        raise UserError("where to? Give --out FOLDER for the sweep's trials, its cache and its table")
    space = build_space(
        [*file.grid, *_pairs("--grid", args.grid)],
        [*file.random, *_pairs("--random", args.random)],
        trials=file.trials if args.trials is None else args.trials,
        seed=args.draw_seed if args.draw_seed is not None else file.draw_seed or 0,
    )
    fixed = [*(script_settings(args.slurm, base) if args.slurm else ()), *args.overrides]
    plan = make_plan(base, config, fixed, space, out)
    array = Array(args.slurm, tuple(args.sbatch), base, args.parallel) if args.slurm else None
    if array is None:
        check_world(plan, args.launch)
    else:
        submission = array.prepare(plan, plan.trials)
    say(plan.describe())
    if args.dry_run:
        say(submission.text() if array else "")
        return {"trials": len(plan.trials), "run_dirs": [str(trial.folder) for trial in plan.trials]}
    claim(plan)
    if array is not None:
        return run_in_queue(plan, array, retry_failed=args.retry_failed, checkout=CHECKOUT)
    stop.listen(functools.partial(_before_the_jobs_end, read_job_end(os.environ), plan))
    return run_here(
        plan, args.launch, parallel=args.parallel or 1, restarts=args.restarts,
        retry_failed=args.retry_failed, should_stop=stop.asked,
    )  # fmt: skip


def _before_the_jobs_end(ends_at: int | None, plan: Plan) -> str | None:
    """Why to stop: within a job of Slurm's its trials would soon stop by themselves, and others be refused."""
    margin_s = max(trial.config.cluster.end_margin_s for trial in plan.trials)
    if ends_at is None or margin_s == 0 or time.time() < ends_at - margin_s - EARLIER_S:
        return None
    return "before the job's time limit"


def _file(args: argparse.Namespace) -> SweepFile:
    return SweepFile() if args.sweep is None else read_sweep_file(args.sweep)


def _pairs(option: str, texts: Sequence[str]) -> list[tuple[str, str]]:
    for text in texts:
        if "=" not in text:
            raise UserError(f"{option} {text}: write {option} field=…, e.g. {option} weight.kd=…")
    return [(key, value) for key, _, value in (text.partition("=") for text in texts)]


def _count(least: int) -> Any:
    def whole_number(text: str) -> int:
        if not (text.isascii() and text.isdigit() and int(text) >= least):
            raise argparse.ArgumentTypeError(f"{text!r} is no whole number from {least}")
        return int(text)

    return whole_number


def flags(parser: argparse.ArgumentParser) -> None:
    """The launcher's own options."""
    add = parser.add_argument
    add("--sweep", type=named_path, metavar="FILE", help="YAML: config, out, grid, random, trials, draw_seed")
    add("--out", type=named_path, metavar="DIR", help="folder of the sweep")
    add("--grid", action="append", default=[], metavar="FIELD=A,B", help="every combination of all --grid")
    add(
        "--random", action="append", default=[], metavar="FIELD=KIND(…)",
        help="uniform(a,b), loguniform(a,b), int(a,b), choice(a,b,…); each draw goes through the whole grid",
    )  # fmt: skip
    add("--trials", type=_count(1), metavar="N", help="draws of --random")
    add("--draw-seed", type=_count(0), metavar="N", help="of the draws; default 0")
    add(
        "--launch",
        default="python",
        metavar="COMMAND",
        help="what stands before launcher/train.py; default python",
    )
    add("--parallel", type=_count(1), metavar="N", help="trials at a time; default 1, in Slurm no limit")
    add(
        "--restarts",
        type=_count(0),
        default=3,
        metavar="N",
        help="of a trial that stopped unasked; default 3",
    )
    add("--retry-failed", action="store_true", help="start trials again that failed")
    add(
        "--slurm",
        type=named_path,
        metavar="SCRIPT",
        help="submit an array with this script of slurm/, and return",
    )
    add("--sbatch", action="append", default=[], metavar="OPTION", help="for sbatch: --sbatch=--nodes=5")
    add("--dry-run", action="store_true", help="check and show all trials, write and start nothing")


if __name__ == "__main__":
    launch(
        main, description=__doc__ or "", flags=flags, need="prepare", config_path=lambda args: _file(args).config
    )  # fmt: skip

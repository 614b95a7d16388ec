"""Compare methods: teachers, tuning on held-out rows, every arm with every seed, evaluation, one report.

python launcher/study.py configs/study/first_round.yaml [--parallel 2] [--dry-run]

The same command goes on: what is done stays, what stopped is resumed. Prints the tables as one JSON line; the page is
OUT/report.html, the table for reading OUT/report.md. Needs `pip install 'distill-dist[report]'`.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

from distill_dist.command_line import launch_plain, named_path
from distill_dist.errors import UserError
from distill_dist.extras import require_extra
from distill_dist.stop_signal import StopSignal
from distill_dist.study.run import Running, check_study, claim
from distill_dist.study.study_file import read_study


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The launcher's arguments."""
    add = parser.add_argument
    add("study", type=named_path, metavar="FILE", help="YAML of the study")
    add("--parallel", type=int, default=1, metavar="N", help="runs at a time (default: 1)")
    add(
        "--launch",
        default="python",
        metavar="COMMAND",
        help="what stands before launcher/train.py; default python",
    )
    add("--retry-failed", action="store_true", help="start runs again that failed")
    add("--dry-run", action="store_true", help="check and show all runs, write and start nothing")


def main(args: argparse.Namespace) -> dict[str, Any]:
    """The tables, what was chosen, and the hours that it took."""
    stop = StopSignal()
    require_extra("report", what="the report")
    if args.parallel < 1:
        raise UserError(f"--parallel {args.parallel}: at least 1")
    study = read_study(args.study)
    configs = check_study(study)
    for config in configs if args.dry_run else ():
        _say(config.run_dir)
    _say(f"{len(configs)} runs in {study.out}")
    if args.dry_run:
        return {"runs": len(configs)}
    claim(study)
    running = Running(study, args.launch, args.parallel, args.retry_failed, stop.asked, _say)
    found = running.run(configs)
    _say((study.out / "report.md").read_text(encoding="utf-8"))
    return found


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    launch_plain(main, description=__doc__ or "", flags=add_flags)

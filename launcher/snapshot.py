"""What a run's student finds hard: rows of a snapshot of `run_dir/snapshots`, as text.

python launcher/snapshot.py runs/kd_cl_sr_mnli [--number 3] [--top 20] [key=value …]
python launcher/snapshot.py runs/kd_cl_sr_mnli/snapshots/snapshot-00003

Prints tables to standard error: the hardest and the easiest rows, the most often forgotten, and suspects of wrong
labels; and the same as one JSON line. Of the configuration only `data.prepared` is read.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from distill_dist.command_line import launch, named_path
from distill_dist.config.schema import RunConfig
from distill_dist.errors import UserError

MOST = 10_000  # rows per list: their texts are held in memory and printed


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The launcher's own options."""
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--number", type=int, metavar="N", help="which of the run's snapshots (default: the newest)"
    )
    which.add_argument(
        "--path", type=named_path, metavar="FOLDER", help="a snapshot of the run that lies elsewhere"
    )
    parser.add_argument("--top", type=int, default=10, metavar="K", help="rows per list (default: 10)")


def config_of_run(args: argparse.Namespace) -> Path:
    """The configuration that the run wrote for itself; above DIR where that is a snapshot."""
    if not args.folder.is_dir():
        raise UserError(
            f"{args.folder}: no such folder: give a run_dir or a snapshot of one, before any key=value"
        )
    for folder in (args.folder, args.folder.parent.parent):
        if (folder / "config.yaml").is_file():
            return Path(folder / "config.yaml")
    raise UserError(
        f"{args.folder} has no config.yaml, nor is it a snapshot in a run's folder: give the run_dir of a "
        "launcher/train.py that started, or --config FILE as well"
    )


def main(config: RunConfig, args: argparse.Namespace) -> dict[str, Any]:
    """The lists, with the snapshot's step, measure, hash and counts."""
    if not 1 <= args.top <= MOST:
        raise UserError(f"--top {args.top}: must be 1 to {MOST}")
    # Only now: a wrong key answers at once.
    from distill_dist.assemble.show_snapshot import find_snapshot, show_snapshot, tables

    folder = find_snapshot(args.path or args.folder, number=args.number)
    found = show_snapshot(folder, Path(config.data.prepared), top=args.top)
    print(tables(found), file=sys.stderr)
    return found


if __name__ == "__main__":
    launch(
        main,
        description=__doc__ or "",
        flags=add_flags,
        need="evaluate",
        config_path=config_of_run,
        folder="run folder, or a snapshot in one",
    )

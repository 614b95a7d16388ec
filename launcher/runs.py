"""Which runs there are, and how they stand.

python launcher/runs.py [runs …] [--sort name|age|dev]

Prints a table to standard error and one JSON line. A place is a run folder, or one that has runs in it (default:
`runs`). `lost` is a run that says `running` while no process holds its folder: the same command goes on with it;
`refused` is one that never began. Broken folders are named below the table.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from distill_dist.command_line import launch_plain, named_path
from distill_dist.report.listing import SORTS, as_json, list_runs, table
from distill_dist.report.run_record import find_runs


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The launcher's arguments."""
    parser.add_argument("places", nargs="*", type=named_path, metavar="DIR", help="default: runs")
    parser.add_argument("--sort", choices=SORTS, default="name", help="default: name")


def main(args: argparse.Namespace) -> dict[str, Any]:
    """Every run's state, method, task, best dev metric, steps and age."""
    entries = list_runs(find_runs(args.places or [Path("runs")]), sort=args.sort)
    print(table(entries), file=sys.stderr)
    return as_json(entries)


if __name__ == "__main__":
    launch_plain(main, description=__doc__ or "", flags=add_flags)

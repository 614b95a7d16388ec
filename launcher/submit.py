"""Check a run on the login node, show what would run where, and submit it to Slurm.

python launcher/submit.py --config configs/gkd_mnli.yaml [--script slurm/gkd_mnli.sh] [--dry-run] [key=value …]
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from distill_dist.command_line import launch, named_path
from distill_dist.config.schema import RunConfig
from distill_dist.errors import UserError
from distill_dist.slurm.freeze import freeze
from distill_dist.slurm.submit import prepare_submission

CHECKOUT = Path(__file__).resolve().parents[1]


def main(config: RunConfig, args: argparse.Namespace) -> dict[str, Any] | None:
    """The job's number and its run folders; with --dry-run the folders alone."""
    if args.freeze is not None:
        freeze(config, args.freeze, checkout=CHECKOUT)
        return None
    found = prepare_submission(_script(args), args.config, config, args.overrides, args.sbatch)
    print(found.text(), flush=True)
    if args.dry_run:
        return {"run_dirs": found.run_dirs}
    return {"job": found.submit(CHECKOUT), "run_dirs": found.run_dirs}


def _script(args: argparse.Namespace) -> Path:
    if args.script is not None:
        return Path(args.script)
    if args.config is None:
        raise UserError("which script? Give --script, or --config FILE whose script in slurm/ has its name")
    own = Path("slurm") / f"{args.config.stem}.sh"
    if not own.is_file():
        raise UserError(f"there is no {own}: give --script (slurm/ has some), or write it")
    return own


def flags(parser: argparse.ArgumentParser) -> None:
    """The launcher's own options."""
    parser.add_argument(
        "--script", type=named_path, metavar="FILE", help="job script; default: slurm/CONFIG.sh"
    )
    parser.add_argument(
        "--sbatch",
        action="append",
        default=[],
        metavar="OPTION",
        help="for sbatch: --sbatch=--nodes=5",
    )
    parser.add_argument("--dry-run", action="store_true", help="show everything, submit nothing")
    parser.add_argument("--freeze", type=named_path, metavar="DIR", help=argparse.SUPPRESS)


if __name__ == "__main__":
    launch(main, description=__doc__ or "", flags=flags)

"""Score a run's best model, or any two Hugging Face folders, on prepared data.

python launcher/evaluate.py --run runs/gkd_sst2_minilm
python launcher/evaluate.py --student FOLDER --teacher FOLDER data.prepared=prepared/sst2_minilm
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from distill_dist.command_line import launch
from distill_dist.config.schema import RunConfig
from distill_dist.errors import UserError


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The launcher's own options."""
    parser.add_argument(
        "--run", type=Path, metavar="DIR", help="run folder: its model, its teacher, its data"
    )
    parser.add_argument(
        "--student", default="", metavar="FOLDER", help="classifier to score (default: the run's)"
    )
    parser.add_argument(
        "--teacher", default="", metavar="FOLDER", help="teacher for loyalty (default: the run's)"
    )
    parser.add_argument("--split", default="dev", help="prepared split to score (default: dev)")
    parser.add_argument(
        "--saliency", action="store_true", help="saliency loyalty too; one backward of both models"
    )


def config_of_run(args: argparse.Namespace) -> Path | None:
    """The configuration that the run wrote for itself."""
    if args.run is None:
        return None
    path = Path(args.run) / "config.yaml"
    if not path.is_file():
        raise UserError(
            f"--run {args.run} has no config.yaml: give the run_dir of a launcher/train.py that started"
        )
    return path


def main(config: RunConfig, args: argparse.Namespace) -> dict[str, Any]:
    """Accuracy, F1 where the task uses it, loss, LL and PL."""
    student = args.student or (str(args.run / "model") if args.run else "")
    if not student:
        raise UserError("nothing to score: give --run DIR or --student FOLDER")
    if args.saliency and not (args.teacher or config.teacher.path):
        raise UserError("--saliency compares with a teacher: give --teacher FOLDER")
    # Only now: a wrong key answers at once, torch takes seconds.
    from distill_dist.assemble.score import score

    return score(
        config,
        student=student,
        teacher=args.teacher,
        split=args.split,
        saliency=args.saliency,
    )


if __name__ == "__main__":
    launch(main, description=__doc__ or "", flags=add_flags, need="evaluate", config_path=config_of_run)

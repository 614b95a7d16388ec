"""Score a run's best model, or any two Hugging Face folders, on prepared data.

python launcher/evaluate.py runs/gkd_sst2_minilm [--saliency] [--consistency] [--submission glue.zip]
python launcher/evaluate.py runs/gkd_sst2_minilm/model data.prepared=prepared/sst2_minilm
python launcher/evaluate.py --student FOLDER --teacher FOLDER --out DIR data.prepared=prepared/sst2_minilm

Prints one JSON line. A run's own model, and --out DIR, get evaluation.json and predictions/SPLIT.tsv as well.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from pathlib import Path
from typing import Any

from distill_dist.command_line import launch, named_path
from distill_dist.config.fields import refuse_changes
from distill_dist.config.load import load_config
from distill_dist.config.schema import RunConfig
from distill_dist.errors import UserError
from distill_dist.report.run_record import no_run, read_run

# what of the configuration is read where a run is scored
_READS = ("data.", "teacher.", "teachers", "cluster.", "batch.")


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The launcher's own options."""
    add = parser.add_argument
    add("--run", type=named_path, metavar="DIR", help="the run folder, by another name")
    add("--student", default="", metavar="FOLDER", help="classifier to score (default: the run's)")
    add(
        "--teacher",
        default="",
        metavar="FOLDER",
        help="teacher for loyalty (default: the run's, if it is there)",
    )
    add("--split", default="", metavar="A,B", help="prepared splits to score (default: all but train)")
    add(
        "--saliency", action="store_true", help="saliency loyalty; two forwards and a backward of both models"
    )
    add(
        "--saliency-rows",
        type=int,
        default=0,
        metavar="N",
        help="of every split, evenly spaced (default: all)",
    )
    add("--consistency", action="store_true", help="agreement on perturbed rows; two forwards of both models")
    add(
        "--rate", type=float, default=0.15, help="share of tokens that a perturbation touches (default: 0.15)"
    )
    add(
        "--resamples",
        type=int,
        default=1000,
        metavar="R",
        help="bootstrap draws for intervals (default: 1000)",
    )
    add("--seed", type=int, default=0, help="of perturbations and draws (default: 0)")
    add("--out", type=named_path, metavar="DIR", help="where files go (default: the run, for its own model)")
    add(
        "--submission", type=named_path, metavar="ZIP", help="add the GLUE server's files of this task to ZIP"
    )
    add(
        "--test", action="append", default=[], metavar="NAME=FILE",
        help="test rows of the server's file NAME, say MNLI-m=test.tsv: below data.path, or a split of the hub's",
    )  # fmt: skip


def find(args: argparse.Namespace) -> tuple[Path | None, str]:
    """(the run folder if there is one, the classifier to score); UserError where a folder is neither."""
    if args.folder and args.run:
        raise UserError(f"{args.folder} and --run {args.run}: give one of them")
    folder = args.folder or args.run
    if folder is None:
        return None, args.student
    if (folder / "config.yaml").is_file():
        return folder, args.student or str(folder / "model")
    if args.run is None and (folder / "config.json").is_file() and not args.student:
        of_run = folder.name == "model" and (folder.parent / "config.yaml").is_file()
        return folder.parent if of_run else None, str(folder)
    raise no_run(
        folder, "give the run_dir of a launcher/train.py that started, or a folder with a model (config.json)"
    )


def config_of_run(args: argparse.Namespace) -> Path | None:
    """The configuration that the run wrote for itself."""
    run, _ = find(args)
    return None if run is None else run / "config.yaml"


def main(config: RunConfig, args: argparse.Namespace) -> dict[str, Any]:
    """Metrics with their intervals, by model, class and split; what was written and where."""
    run, student = find(args)
    if not student:
        raise UserError("nothing to score: give the run's folder or --student FOLDER")
    _check(config, args)
    if run is not None:
        was = load_config(run / "config.yaml", [], need="evaluate")
        why = "scoring reads nothing of it (for draws and perturbations there is --seed): leave it away"
        refuse_changes(config, was, but=_READS, why=why)
    out = args.out or (run if run is not None and not args.student else None)
    # Only now: a wrong key answers at once, torch takes seconds.
    from distill_dist.assemble.evaluation_files import evaluated_folder, left_behind, write_evaluation
    from distill_dist.assemble.finished_run import check_own_model, other_rows
    from distill_dist.assemble.score import Asked, check_splits, score
    from distill_dist.assemble.submission_of_run import write_submission_of

    asked = Asked(
        student=student,
        teacher=args.teacher,
        splits=tuple(dict.fromkeys(filter(None, args.split.split(",")))),
        saliency=args.saliency,
        saliency_rows=args.saliency_rows,
        consistency=args.consistency,
        rate=args.rate,
        seed=args.seed,
        resamples=args.resamples,
    )
    manifest = check_splits(config, asked)
    if run is not None and (other := other_rows(config, read_run(run, whole=False), manifest)):
        print(f"{other}: what is held out here may have taught it", file=sys.stderr)
    if run is not None and not args.student:
        check_own_model(Path(student))
    with contextlib.nullcontext() if out is None else evaluated_folder(out):
        submission = None
        if args.submission is not None:  # first: what it refuses is told before a split is scored
            places = dict(each.split("=", 1) for each in args.test)
            submission = write_submission_of(config, student=student, path=args.submission, places=places)
        scored = score(config, asked)
        if out is not None and (lost := left_behind(out, scored)):
            print(f"the evaluation that this replaces had more: {', '.join(lost)}", file=sys.stderr)
        found = scored.record if out is None else write_evaluation(out, scored)
    return found if submission is None else {**found, "submission": submission}


def _check(config: RunConfig, args: argparse.Namespace) -> None:
    if args.saliency and not (args.teacher or config.teacher.path or config.teachers):
        raise UserError("--saliency compares with a teacher: give --teacher FOLDER")
    if args.saliency_rows < 0:
        raise UserError(f"--saliency-rows {args.saliency_rows}: must be 1 or more, or left away for all")
    if args.saliency_rows and not args.saliency:
        raise UserError(f"--saliency-rows {args.saliency_rows} says of how many rows: add --saliency")
    if not 0 < args.rate <= 1:
        raise UserError(f"--rate {args.rate}: must be above 0, to 1")
    if not 1 <= args.resamples <= 10**6:
        raise UserError(f"--resamples {args.resamples}: must be 1 to 1000000")
    if not 0 <= args.seed < 2**32:
        raise UserError(f"--seed {args.seed}: must be 0 to {2**32 - 1}")
    if args.test and args.submission is None:
        raise UserError("--test says where test rows are for --submission ZIP: give that as well")
    if wrong := [each for each in args.test if not all(each.partition("="))]:
        raise UserError(f"--test {wrong[0]}: must be NAME=FILE, say MNLI-m=test_matched.tsv")
    names = [each.partition("=")[0] for each in args.test]
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError(f"--test {twice[0]}=…: given twice, which of the files is it?")


if __name__ == "__main__":
    launch(
        main,
        description=__doc__ or "",
        flags=add_flags,
        need="evaluate",
        config_path=config_of_run,
        folder="run folder, or one with a model",
        folder_needed=False,
    )

"""One HTML page of runs: tables with significance, curves, curricula, saliency, commands and versions.

python launcher/report.py runs/kd_sst2 runs/gkd_sst2 [--baseline kd] [--out report.html]
python launcher/report.py runs --baseline kd --details 20
python launcher/report.py runs/gkd_sst2 --saliency 8        # compute examples with the run's models first

A place is a run folder, or one that has runs in it. The page is one file that needs no network, made from the files of
the runs alone; what evaluate.py left in them (intervals, predictions) is used where it is there. Prints the tables as
one JSON line. Needs `pip install 'distill-dist[report]'`.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

from distill_dist.command_line import launch_plain, named_path
from distill_dist.durable import write_durable
from distill_dist.errors import UserError
from distill_dist.extras import require_extra
from distill_dist.report.collect import Choice, collect
from distill_dist.report.page import as_json, render
from distill_dist.report.run_record import find_runs

NAME = "report.html"


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The launcher's arguments."""
    add = parser.add_argument
    add("places", nargs="+", type=named_path, metavar="RUN", help="run folder, or a folder with runs in it")
    add("--out", type=named_path, metavar="FILE", help=f"default: RUN/{NAME} of one place, else ./{NAME}")
    add(
        "--baseline",
        default="",
        metavar="METHOD",
        help="compare with: a method, a line's label, a run's folder",
    )
    add("--split", default="dev", help="what is compared (default: dev)")
    add("--resamples", type=int, default=10_000, metavar="B", help="of the bootstrap (default: 10000)")
    add("--seed", type=int, default=0, help="of the bootstrap (default: 0)")
    add("--details", type=int, default=12, metavar="N", help="runs with pictures of their own (default: 12)")
    add(
        "--saliency", type=int, default=0, metavar="K",
        help="first compute, with the runs' models, the K rows that student and teacher see most differently",
    )  # fmt: skip
    add("--rows", default="", metavar="I,J", help="compute these rows of the split instead")


def main(args: argparse.Namespace) -> dict[str, Any]:
    """The tables, and where the page is."""
    _check(args)
    require_extra("report", what="the report")
    paths = find_runs(args.places)
    out = args.out or (args.places[0] / NAME if len(args.places) == 1 else Path(NAME))
    _check_writable(out)
    if args.saliency or args.rows:
        _compute_examples(paths, args)
    choice = Choice(args.baseline, args.split, args.resamples, args.seed, args.details)
    found = collect(paths, choice, progress=_progress)
    made = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
    page = render(found, made=made, command=shlex.join(["python", *sys.argv]))
    write_durable(out, lambda temporary: temporary.write_text(page, encoding="utf-8"))
    _progress("")
    for view in found.runs:
        for problem in view.problems:
            print(f"{view.run.path}: {problem}", file=sys.stderr)
    runs = f"{len(paths)} run{'' if len(paths) == 1 else 's'}"
    print(f"{out}: {len(page) / 1e6:.1f} MB, {runs}", file=sys.stderr)
    return {"report": str(out), **as_json(found)}


def _check(args: argparse.Namespace) -> None:
    for name, least, most in (("resamples", 100, 10**6), ("details", 0, 10**4), ("saliency", 0, 1000)):
        if not least <= (value := getattr(args, name)) <= most:
            raise UserError(f"--{name} {value}: must be {least} to {most}")
    if args.seed < 0:
        raise UserError(f"--seed {args.seed}: must be 0 or more")
    if args.saliency and args.rows:
        raise UserError("--saliency chooses the rows itself: give it or --rows")
    if not all(part.isdecimal() for part in args.rows.split(",") if args.rows):
        raise UserError(f"--rows {args.rows}: must be row numbers of the split, say 3,17")


def _check_writable(out: Path) -> None:
    """Before the work; makes the folder that the page goes into."""
    try:
        if out.is_dir():
            raise UserError(f"--out {out} is a folder: give the name of a file, say {out / NAME}")
        out.parent.mkdir(parents=True, exist_ok=True)
        with NamedTemporaryFile(dir=out.parent, prefix=f".{out.name}.", suffix=".tmp"):
            pass
    except OSError as error:
        raise UserError(
            f"{out} cannot be written: {error.strerror} ({error.filename}): give another place with --out FILE"
        ) from error


def _compute_examples(paths: list[Path], args: argparse.Namespace) -> None:
    from distill_dist.assemble.saliency_examples import write_examples  # torch takes seconds

    rows = tuple(map(int, args.rows.split(","))) if args.rows else ()
    for number, path in enumerate(paths, start=1):
        _progress(f"saliency {number}/{len(paths)}")
        try:
            write_examples(path, split=args.split, most_different=args.saliency, rows=rows)
        except UserError as error:
            if len(paths) == 1:
                raise
            # among many runs some have no teacher, or are not done
            print(f"no saliency: {error}", file=sys.stderr)


def _progress(text: str) -> None:
    if sys.stderr.isatty():
        print(f"\r{text:40}" if text else f"\r{'':40}\r", end="", file=sys.stderr, flush=True)


if __name__ == "__main__":
    launch_plain(main, description=__doc__ or "", flags=add_flags)

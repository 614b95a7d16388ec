"""Take a finished run's best model away: a Hugging Face folder with tokenizer, model card and, if asked for, ONNX.

python launcher/export.py runs/gkd_sst2 --out exports/sst2-small
python launcher/export.py runs/gkd_sst2 --out exports/sst2-small --onnx --latency cluster.threads=1

The folder loads in `AutoModelForSequenceClassification` and `pipeline("text-classification")` wherever transformers
and torch are; it is written complete or not at all, and the run is only read. Where the run has no evaluation.json of
its model, the model is scored first, so that the card has intervals. --onnx needs `pip install 'distill-dist[onnx]'`.
Prints one JSON line.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from distill_dist.command_line import launch, named_path
from distill_dist.config.fields import refuse_changes
from distill_dist.config.load import load_config
from distill_dist.config.schema import RunConfig
from distill_dist.errors import UserError
from distill_dist.extras import require_extra
from distill_dist.report.run_record import config_of_folder

_WHERE = ("data.prepared", "teacher.cache_dir", "cluster.")


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The launcher's own options."""
    add = parser.add_argument
    add(
        "--out",
        type=named_path,
        metavar="FOLDER",
        help="what is written; an earlier export of ours is replaced",
    )
    add(
        "--onnx",
        action="store_true",
        help="add onnx/model.onnx and onnx/model_int8.onnx, checked on dev rows",
    )
    add(
        "--latency", action="store_true",
        help="time teacher, student and ONNX files on dev rows, in batches of 1 and 32, on the CPU (cluster.threads)",
    )  # fmt: skip
    add("--rounds", type=int, default=5, metavar="N", help="rounds of --latency that count (default: 5)")
    add(
        "--no-evaluate", action="store_true",
        help="where the run has no evaluation.json of its model: take its own figures, which have no intervals",
    )  # fmt: skip


def config_of_run(args: argparse.Namespace) -> Path:
    """The configuration that the run wrote for itself."""
    return config_of_folder(args.folder)


def main(config: RunConfig, args: argparse.Namespace) -> dict[str, Any]:
    """What was written, and what was measured."""
    if args.out is None:
        raise UserError("nowhere to write: give --out FOLDER")
    was = load_config(args.folder / "config.yaml", [], need="evaluate")
    why = (
        "an export takes it as it was: only data.prepared, teacher.cache_dir and cluster.* can be given, which say "
        "where and how it is done"
    )
    refuse_changes(config, was, but=_WHERE, why=why)
    if not 1 <= args.rounds <= 1000:
        raise UserError(f"--rounds {args.rounds}: must be 1 to 1000")
    if args.onnx:
        require_extra("onnx", what="--onnx")
    from distill_dist.assemble.export_run import ExportAsked, export_run  # torch takes seconds

    asked = ExportAsked(
        run=args.folder,
        out=args.out,
        evaluate=not args.no_evaluate,
        onnx=args.onnx,
        latency=args.latency,
        rounds=args.rounds,
    )
    return export_run(config, asked)


if __name__ == "__main__":
    launch(
        main,
        description=__doc__ or "",
        flags=add_flags,
        need="evaluate",
        config_path=config_of_run,
        folder="the run's folder",
    )

"""Measurements, each comparing in one run.

    python launcher/bench.py padding [--config configs/teacher_sst2_minilm.yaml] [--steps 40] [key=value …]
    python launcher/bench.py gradients [--shape minilm|bert_base|both] [--device cpu|cuda] [--threads 1] [--repeats N]
    python launcher/bench.py curriculum [--rows 1e7 1e8 1e9] [--folder DIR] [--streaming-python PATH]
    python launcher/bench.py checkpoint [--rounds 7] [--every 20] [--folder DIR]
    python launcher/bench.py teacher [--rounds 5] [--hosts 4] [--clients 32] [--seconds 60]

`padding`: what grouping by length buys over random batches and over padding to the longest row.
`gradients`: what gradient alignment costs by each route, in time and memory over plain distillation, and its error;
on random models and rows as long as SST-2's, so it takes no configuration.
`curriculum`: what an epoch's order costs (plan, memory, resume, ids per second) against Mosaic Streaming's shuffle and
DeepSpeed's data sampler, and how even exact quotas make batches; on random scores, no configuration either.
`checkpoint`: how long training stands still for one, and what it costs all in all, written before the next step and
beside it; a MiniLM student of 3 layers with AdamW's moments, KD steps, no configuration.
`teacher`: what signals from a teacher service cost a student over signals that lie ready, how the service scales from
1 host to more, bytes and error of each wire type, and requests of many clients at once, each answer checked; real
hosts and clients, and in place of the model a stand-in that replays signals when another device would have them. No
configuration either.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distill_dist.command_line import Main, launch, named_path
from distill_dist.config.schema import RunConfig
from distill_dist.errors import EXIT_USER_ERROR, UserError

ROOT = Path(__file__).resolve().parents[1]


def _progress(text: str) -> None:
    print(f"\r{text:40}", end="", file=sys.stderr, flush=True)


def add_padding_flags(parser: argparse.ArgumentParser) -> None:
    """Options of `padding`."""
    parser.add_argument("--steps", type=int, default=40, help="steps per way (default: 40)")


def padding(config: RunConfig, args: argparse.Namespace) -> dict[str, Any]:
    """The figures of `padding`."""
    if args.steps < 1:
        raise UserError(f"--steps {args.steps}: must be at least 1")
    # Only now: a wrong key answers at once, torch takes seconds.
    from distill_dist.bench.padding import measure_padding

    found = measure_padding(config, steps=args.steps, progress=_progress)
    print(file=sys.stderr)
    return found


def _refuse_configuration(name: str, args: argparse.Namespace) -> None:
    if args.config is not None or args.overrides:
        raise UserError(f"{name} reads no configuration: leave --config and key=value away")


def add_gradients_flags(parser: argparse.ArgumentParser) -> None:
    """Options of `gradients`."""
    parser.add_argument(
        "--shape",
        choices=("minilm", "bert_base", "both"),
        default="both",
        help="student of 3 MiniLM or 6 BERT-base layers (default: both)",
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="default: cpu")
    parser.add_argument("--threads", type=int, default=1, help="of the CPU (default: 1)")
    parser.add_argument(
        "--repeats", type=int, help="batches, each taken by every way in turn (default: 24 and 5)"
    )


def gradients(config: RunConfig, args: argparse.Namespace) -> dict[str, Any]:
    """The figures of `gradients`."""
    _refuse_configuration("gradients", args)
    for name in ("threads", "repeats"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise UserError(f"--{name} {value}: must be at least 1")
    import torch

    from distill_dist.bench.distillation_cases import SHAPES
    from distill_dist.bench.gradients import measure_gradients, table

    if args.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch sees no CUDA device here; take --device cpu")
    torch.set_num_threads(args.threads)
    shapes = {name: shape for name, shape in SHAPES.items() if args.shape in (name, "both")}
    found = measure_gradients(shapes, device=args.device, rounds=args.repeats, progress=_progress)
    print(f"\r{'':40}\r{table(found).lstrip()}", file=sys.stderr)
    return found


def num_rows(text: str) -> int:
    """1e8 -> 100000000; argparse shows the ValueError of anything else as the option's error."""
    rows = float(text)
    if rows < 1 or not rows.is_integer():
        raise ValueError(text)
    return int(rows)


def add_curriculum_flags(parser: argparse.ArgumentParser) -> None:
    """Options of `curriculum`."""
    parser.add_argument(
        "--rows",
        type=num_rows,
        nargs="+",
        metavar="N",
        help="sizes (default: 1e7 1e8 1e9; those that memory or disk is too small for are left out, which is said)",
    )
    parser.add_argument(
        "--folder",
        type=named_path,
        default=Path(os.environ.get("TMPDIR") or "/var/tmp"),
        help="for temporary files, on the disk to read scores from: 26 bytes a row (default: $TMPDIR, else /var/tmp)",
    )
    parser.add_argument(
        "--streaming-python",
        type=named_path,
        default=ROOT / ".venv-streaming" / "bin" / "python",
        metavar="PATH",
        help="interpreter that has mosaicml-streaming (default: .venv-streaming's, of make bench-curriculum)",
    )


def curriculum(config: RunConfig, args: argparse.Namespace) -> dict[str, Any]:
    """The figures of `curriculum`."""
    _refuse_configuration("curriculum", args)
    if not args.folder.is_dir():
        raise UserError(f"--folder {args.folder}: there is no such folder")
    from distill_dist.bench.curriculum import Sizes, measure_curriculum
    from distill_dist.bench.curriculum_table import table

    sizes = Sizes(rows=tuple(args.rows)) if args.rows else Sizes()
    found = measure_curriculum(
        sizes, streaming_python=args.streaming_python, folder=args.folder, progress=_progress
    )
    print(f"\r{'':40}\r{table(found)}", file=sys.stderr)
    return found


def add_checkpoint_flags(parser: argparse.ArgumentParser) -> None:
    """Options of `checkpoint`."""
    parser.add_argument("--rounds", type=int, default=7, help="of each way, in turns (default: 7)")
    parser.add_argument("--every", type=int, default=20, help="steps between two of them (default: 20)")
    parser.add_argument(
        "--folder",
        type=named_path,
        default=Path(os.environ.get("TMPDIR") or "/var/tmp"),
        help="on the disk to write to: some 700 MB (default: $TMPDIR, else /var/tmp)",
    )


def checkpoint(config: RunConfig, args: argparse.Namespace) -> dict[str, Any]:
    """The figures of `checkpoint`."""
    _refuse_configuration("checkpoint", args)
    for name in ("rounds", "every"):
        value = getattr(args, name)
        if value < 1:
            raise UserError(f"--{name} {value}: must be at least 1")
    if not args.folder.is_dir():
        raise UserError(f"--folder {args.folder}: there is no such folder")
    import torch

    from distill_dist.bench.checkpoint import measure_checkpoint, table
    from distill_dist.bench.distillation_cases import SHAPES

    torch.set_num_threads(1)
    found = measure_checkpoint(
        SHAPES["minilm"], rounds=args.rounds, every=args.every, folder=args.folder, progress=_progress
    )
    print(f"\r{'':40}\r{table(found)}", file=sys.stderr)
    return found


def add_teacher_flags(parser: argparse.ArgumentParser) -> None:
    """Options of `teacher`."""
    parser.add_argument("--rounds", type=int, default=5, help="of each way, in turns (default: 5)")
    parser.add_argument("--batches", type=int, default=16, help="different ones, of 32 rows (default: 16)")
    parser.add_argument("--hosts", type=int, default=4, help="default: 4, for which the bar stands")
    parser.add_argument("--clients", type=int, default=32, help="processes that ask at once (default: 32)")
    parser.add_argument("--seconds", type=float, default=60.0, help="for which they ask (default: 60)")


def teacher(config: RunConfig, args: argparse.Namespace) -> dict[str, Any]:
    """The figures of `teacher`."""
    _refuse_configuration("teacher", args)
    for name in ("rounds", "batches", "hosts", "clients"):
        value = getattr(args, name)
        if value < 1:
            raise UserError(f"--{name} {value}: must be at least 1")
    if not 0 < args.seconds < float("inf"):
        raise UserError(f"--seconds {args.seconds}: must be above 0, and finite")
    import torch

    from distill_dist.bench.teacher import Sizes, measure_teacher
    from distill_dist.bench.teacher_table import table

    torch.set_num_threads(1)  # hosts need a processor too
    sizes = Sizes(
        rounds=args.rounds,
        cases=args.batches,
        hosts=args.hosts,
        clients=args.clients,
        seconds=args.seconds,
    )
    found = measure_teacher(sizes, progress=_progress)
    print(f"\r{'':40}\r{table(found)}", file=sys.stderr)
    return found


@dataclass(frozen=True)
class Benchmark:
    """What a benchmark runs, and its own options."""

    main: Main
    flags: Callable[[argparse.ArgumentParser], None]


BENCHMARKS = {
    "padding": Benchmark(padding, add_padding_flags),
    "gradients": Benchmark(gradients, add_gradients_flags),
    "curriculum": Benchmark(curriculum, add_curriculum_flags),
    "checkpoint": Benchmark(checkpoint, add_checkpoint_flags),
    "teacher": Benchmark(teacher, add_teacher_flags),
}


def all_flags(parser: argparse.ArgumentParser) -> None:
    """Every benchmark's options, for `--help` alone."""
    for name, benchmark in BENCHMARKS.items():
        benchmark.flags(parser.add_argument_group(name))  # type: ignore[arg-type]  # groups add like parsers


def config_of_bench(args: argparse.Namespace) -> Path:
    """Without --config the demo's teacher: its corpus is generated, so the benchmark runs anywhere."""
    return ROOT / "configs" / "demo_teacher.yaml"


if __name__ == "__main__":
    # The benchmark's name comes first, so that it is not read as one of the key=value fields after it.
    name, *rest = sys.argv[1:] or ["--help"]
    if name not in BENCHMARKS and name not in ("-h", "--help"):
        print(f"error: {name!r} is no benchmark; there are: {', '.join(BENCHMARKS)}", file=sys.stderr)
        sys.exit(EXIT_USER_ERROR)
    chosen = BENCHMARKS.get(name, Benchmark(padding, all_flags))
    launch(
        chosen.main,
        description=__doc__ or "",
        flags=chosen.flags,
        config_path=config_of_bench,
        argv=rest if name in BENCHMARKS else ["--help"],
    )

"""Measurements, each comparing in one run.

    python launcher/bench.py padding [--config configs/teacher_sst2_minilm.yaml] [--steps 40] [key=value …]
    python launcher/bench.py gradients [--shape minilm|bert_base|both] [--device cpu|cuda] [--threads 1] [--repeats N]

`padding`: what grouping by length buys over random batches and over padding to the longest row.
`gradients`: what gradient alignment costs by each route, in time and memory over plain distillation, and its error;
on random models and rows as long as SST-2's, so it takes no configuration.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distill_dist.command_line import Main, launch
from distill_dist.config.schema import RunConfig
from distill_dist.data.prepare import prepare
from distill_dist.errors import EXIT_USER_ERROR, UserError


def _progress(text: str) -> None:
    print(f"\r{text:40}", end="", file=sys.stderr, flush=True)


def add_padding_flags(parser: argparse.ArgumentParser) -> None:
    """Options of `padding`."""
    parser.add_argument("--steps", type=int, default=40, help="steps per way (default: 40)")


def padding(config: RunConfig, args: argparse.Namespace) -> dict[str, Any]:
    """The figures of `padding`."""
    if args.steps < 1:
        raise UserError(f"--steps {args.steps}: must be at least 1")
    prepare(config.data)
    # Only now: a wrong key answers at once, torch takes seconds.
    from distill_dist.bench.padding import measure_padding

    found = measure_padding(config, steps=args.steps, progress=_progress)
    print(file=sys.stderr)
    return found


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
    if args.config is not None or args.overrides:
        raise UserError("gradients reads no configuration: leave --config and key=value away")
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


@dataclass(frozen=True)
class Benchmark:
    """What a benchmark runs, and its own options."""

    main: Main
    flags: Callable[[argparse.ArgumentParser], None]


BENCHMARKS = {
    "padding": Benchmark(padding, add_padding_flags),
    "gradients": Benchmark(gradients, add_gradients_flags),
}


def all_flags(parser: argparse.ArgumentParser) -> None:
    """Every benchmark's options, for `--help` alone."""
    for name, benchmark in BENCHMARKS.items():
        benchmark.flags(parser.add_argument_group(name))  # type: ignore[arg-type]  # groups add like parsers


def config_of_bench(args: argparse.Namespace) -> Path:
    """Without --config the demo's teacher: its corpus is generated, so the benchmark runs anywhere."""
    return Path(__file__).resolve().parents[1] / "configs" / "demo_teacher.yaml"


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

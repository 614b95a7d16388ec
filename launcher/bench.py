"""Measurements, each comparing in one run.

    python launcher/bench.py padding [--config configs/teacher_sst2_minilm.yaml] [--steps 40] [key=value …]

`padding`: what grouping by length buys over random batches and over padding to the longest row.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from distill_dist.command_line import launch
from distill_dist.config.schema import RunConfig
from distill_dist.data.prepare import prepare
from distill_dist.errors import EXIT_USER_ERROR, UserError

BENCHMARKS = ("padding",)


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The launcher's own options."""
    parser.add_argument("--steps", type=int, default=40, help="steps per way (default: 40)")


def config_of_bench(args: argparse.Namespace) -> Path:
    """Without --config the demo's teacher: its corpus is generated, so the benchmark runs anywhere."""
    return Path(__file__).resolve().parents[1] / "configs" / "demo_teacher.yaml"


def main(config: RunConfig, args: argparse.Namespace) -> dict[str, Any]:
    """One benchmark's figures."""
    if args.steps < 1:
        raise UserError(f"--steps {args.steps}: must be at least 1")
    prepare(config.data)
    # Only now: a wrong key answers at once, torch takes seconds.
    from distill_dist.bench.padding import measure_padding

    def progress(text: str) -> None:
        print(f"\r{text:40}", end="", file=sys.stderr, flush=True)

    found = measure_padding(config, steps=args.steps, progress=progress)
    print(file=sys.stderr)
    return found


if __name__ == "__main__":
    # The benchmark's name comes first, so that it is not read as one of the key=value fields after it.
    name, *rest = sys.argv[1:] or ["--help"]
    if name not in BENCHMARKS and name not in ("-h", "--help"):
        print(f"error: {name!r} is no benchmark; there are: {', '.join(BENCHMARKS)}", file=sys.stderr)
        sys.exit(EXIT_USER_ERROR)
    argv = rest if name in BENCHMARKS else ["--help"]
    launch(main, description=__doc__ or "", flags=add_flags, config_path=config_of_bench, argv=argv)

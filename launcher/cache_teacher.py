"""Compute a teacher's signals once, before the runs that read them: fills `teacher.cache_dir`.

python launcher/cache_teacher.py --config configs/gkd_sst2.yaml teacher.cache_dir=cache
torchrun --nproc_per_node 4 launcher/cache_teacher.py --config …        (each process fills its share)
"""

from __future__ import annotations

import argparse
import logging
import sys
from typing import Any

from distill_dist.command_line import launch
from distill_dist.config.schema import RunConfig


def _progress(text: str) -> None:
    print(f"\r{text:70}", end="", file=sys.stderr, flush=True)


def main(config: RunConfig, args: argparse.Namespace) -> dict[str, Any]:
    """Rows, bytes and seconds."""
    # a warning stands on a line of its own, not behind the progress
    logging.basicConfig(level=logging.WARNING, format="\n%(message)s")
    # Only now: a wrong key answers at once, torch takes seconds.
    from distill_dist.assemble.fill_cache import fill_cache

    found = fill_cache(config, _progress)
    print(file=sys.stderr)
    return found


if __name__ == "__main__":
    launch(main, description=__doc__ or "", need="cache")

"""Tokenise the rows that a configuration names and write them as shards to `data.prepared`.

    python launcher/prepare.py --config configs/gkd_sst2_minilm.yaml [--replace] [key=value ...]

Prints one JSON line: rows per split, tokens, truncated and bad rows. Only the `data` section is read.
"""

from __future__ import annotations

import argparse
from typing import Any

from distill_dist.command_line import launch
from distill_dist.config.schema import RunConfig
from distill_dist.data.prepare import prepare


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The launcher's own options."""
    parser.add_argument(
        "--replace", action="store_true", help="overwrite a folder that was prepared from something else"
    )


def main(config: RunConfig, args: argparse.Namespace) -> dict[str, Any]:
    """Prepare, and report the counts."""
    return prepare(config.data, replace=args.replace)


if __name__ == "__main__":
    launch(main, description="Prepare the data of a run.", flags=add_flags, need="prepare")

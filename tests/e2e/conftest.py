"""The undisturbed run of tests/conftest.py to compare with, and what processes leave behind."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from tiny import Started

# minutes of six ranks: `make faults`
collect_ignore = [] if os.environ.get("DISTILL_FAULTS") else ["test_sharded_replicas.py"]
TRACED = ("cluster.teachers=1", "train.trace=true", "train.checkpoint_every=10")


@dataclass(frozen=True)
class Reference:
    """A finished run of 2 students and 1 teacher under the real DeepSpeed launcher."""

    run_dir: Path
    codes: list[int]
    started: Started
    shm_before: set[str]


def shared_memory() -> set[str]:
    """Names in /dev/shm, where killed processes leave segments behind."""
    folder = Path("/dev/shm")
    return {path.name for path in folder.iterdir()} if folder.is_dir() else set()

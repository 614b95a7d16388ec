"""Ranks that misbehave, to test the harness itself."""

from __future__ import annotations

import time

from multi.harness import rank_and_size


def sleep_on_rank_1() -> int:
    """Rank 1 never returns."""
    rank, size = rank_and_size()
    if rank == 1:
        time.sleep(3600)
    return size


def fail() -> float:
    """Raises."""
    return 1 / 0

"""A plan in little memory, and one that was saved: the same rows, or none."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from curriculum.plan_cases import case_of, stages
from distill_dist.curriculum.plan import load_plan


@pytest.mark.parametrize("window_shards", [0, 3])
def test_little_memory_changes_no_row(window_shards: int) -> None:
    settings: dict[str, Any] = {
        "largest": 64,
        "stages": stages("linear", 3000, 32),
        "window_shards": window_shards,
    }
    plenty, little = (case_of("ties", 3000, memory=memory, **settings) for memory in (1 << 30, 400))
    positions = np.arange(3000)
    expected = plenty.plan.rows_at(positions)
    assert np.array_equal(little.plan.rows_at(positions), expected)
    for start in range(0, 3000, 32):
        assert np.array_equal(
            little.plan.rows_at(positions[start : start + 32]), expected[start : start + 32]
        )
    tracemalloc.start()
    little.plan.rows_at(positions[:32])
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


@pytest.mark.parametrize("num_groups", [1, 3])
def test_a_saved_plan_gives_equal_rows_and_no_other(num_groups: int, tmp_path: Path) -> None:
    case = case_of("ties", 3000, num_groups=num_groups, stages=stages("linear", 3000, 32))
    path = tmp_path / "plan.npz"
    assert load_plan(path, "key", case.spec, case.plan.ranked) is None
    case.plan.save(path, "key")
    found = load_plan(path, "key", case.spec, case.plan.ranked)
    assert found is not None
    assert np.array_equal(found.rows_at(np.arange(3000)), case.whole_epoch)
    assert np.array_equal(found.counts, case.plan.counts)
    assert load_plan(path, "other key", case.spec, case.plan.ranked) is None
    case.plan.save(path, "other key")
    assert load_plan(path, "other key", case.spec, case.plan.ranked) is not None
    with np.load(path, allow_pickle=False) as arrays:  # for whoever looks into it
        assert "counts" in arrays


def test_a_damaged_plan_is_none(tmp_path: Path) -> None:
    case = case_of("ties", 30, largest=20, buckets=2)
    path = tmp_path / "plan.npz"
    case.plan.save(path, "key")
    whole = path.read_bytes()
    for length in [*range(0, len(whole), 97), len(whole) - 1]:
        path.write_bytes(whole[:length])
        assert load_plan(path, "key", case.spec, case.plan.ranked) is None
    for place in range(0, len(whole), 3):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << place % 8
        path.write_bytes(damaged)
        assert load_plan(path, "key", case.spec, case.plan.ranked) is None, place
    path.write_bytes(whole + b"\0")
    assert load_plan(path, "key", case.spec, case.plan.ranked) is None
    path.unlink()
    path.mkdir()
    assert load_plan(path, "key", case.spec, case.plan.ranked) is None

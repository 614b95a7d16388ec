"""Memory before disk before a miss, and what is counted of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from distill_dist.teacher.memory_cache import ENTRY_BYTES
from distill_dist.teacher.signal_cache import SignalCache
from teacher.cache_cases import CONTEXT, keys, row, rows


def test_without_a_folder_it_is_memory() -> None:
    cache = SignalCache(10 * (ENTRY_BYTES + 70), None, context=CONTEXT)
    assert cache.get_many(keys([1, 2])) == [None, None]
    cache.put_many(keys([1, 2]), rows([1, 2]))
    assert cache.get_many(keys([2, 3, 1])) == [row(2), None, row(1)]
    cache.refresh()
    cache.close()
    assert cache.counters() == {
        "memory_hits": 2,
        "misses": 3,
        "left_out": 0,
        "memory_bytes": 2 * ENTRY_BYTES + len(row(1)) + len(row(2)),
        "disk_hits": 0,
        "damaged": 0,
        "lost_segments": 0,
        "written": 0,
        "disk_bytes": 0,
    }


def test_what_memory_lets_go_comes_from_disk_and_is_in_memory_again(tmp_path: Path) -> None:
    cache = SignalCache(5 * (ENTRY_BYTES + 70), tmp_path, context=CONTEXT)
    cache.put_many(keys(range(20)), rows(range(20)))
    counters = cache.counters()
    assert counters["left_out"] > 10
    assert counters["written"] == 20
    assert counters["memory_bytes"] <= 5 * (ENTRY_BYTES + 70)
    assert cache.get_many(keys([0])) == [row(0)]
    assert cache.get_many(keys([0])) == [row(0)]
    assert cache.get_many(keys([99, *range(20)])) == [None, *rows(range(20))]
    after = cache.counters()
    assert (after["memory_hits"] > 0, after["disk_hits"] > 10, after["misses"]) == (True, True, 1)
    assert after["memory_hits"] + after["disk_hits"] == 22
    assert cache.counters()["disk_bytes"] == sum(path.stat().st_size for path in tmp_path.iterdir())
    cache.close()


def test_it_survives_a_restart_and_serves_several_teachers(tmp_path: Path) -> None:
    for context, numbers in ((CONTEXT, range(5)), (bytes(32), range(5, 9))):
        cache = SignalCache(1 << 20, tmp_path, context=context)
        cache.put_many(keys(numbers), rows(numbers))
        cache.close()
    cache = SignalCache(1 << 20, tmp_path, context=CONTEXT)
    assert cache.get_many(keys(range(10))) == [*rows(range(9)), None]
    assert cache.get_many(keys(range(10))) == [*rows(range(9)), None]
    counters = cache.counters()
    assert [counters[name] for name in ("memory_hits", "disk_hits", "misses")] == [9, 9, 2]
    cache.close()


def test_two_processes_see_each_others_rows_when_sealed(tmp_path: Path) -> None:
    one, two = (SignalCache(1 << 20, tmp_path, context=CONTEXT, refresh_every_s=1e9) for _ in range(2))
    one.put_many(keys([1]), rows([1]))
    two.refresh()
    assert two.get_many(keys([1])) == [None]
    one.close()
    assert two.get_many(keys([1])) == [None]
    two.refresh()
    assert two.get_many(keys([1])) == [row(1)]
    two.close()


@pytest.mark.parametrize("bad", [b"", b"x" * 15, b"x" * 17])
def test_a_key_has_16_bytes(bad: bytes) -> None:
    cache = SignalCache(1 << 20, None, context=CONTEXT)
    with pytest.raises(AssertionError):
        cache.get_many([bad])
    with pytest.raises(AssertionError):
        cache.put_many([bad], [b""])

"""The map in memory: what came first stays, and the limit is real bytes."""

from __future__ import annotations

import random
import threading
import tracemalloc

import pytest

from distill_dist.teacher.memory_cache import ENTRY_BYTES, MemoryCache
from teacher.cache_cases import key


def test_what_came_first_stays() -> None:
    cache = MemoryCache(3 * (ENTRY_BYTES + 10))
    for i in range(3):
        cache.put(key(i), bytes([i]) * 10)
    cache.put(key(3), b"3" * 10)
    assert [cache.get(key(i)) is None for i in range(4)] == [False, False, False, True]
    assert (cache.hits, cache.misses, cache.left_out) == (3, 1, 1)
    assert cache.bytes == 3 * (ENTRY_BYTES + 10)


def test_the_same_key_counts_once() -> None:
    cache = MemoryCache(2 * (ENTRY_BYTES + 4))
    for _ in range(2):
        cache.put(key(0), b"0000")
    cache.put(key(1), b"1111")
    assert (cache.get(key(0)), cache.get(key(1))) == (b"0000", b"1111")
    assert (cache.bytes, cache.left_out) == (2 * (ENTRY_BYTES + 4), 0)


def test_a_smaller_row_may_still_fit() -> None:
    cache = MemoryCache(2 * ENTRY_BYTES + 30)
    cache.put(key(0), b"x" * 20)
    cache.put(key(1), b"y" * 11)
    cache.put(key(2), b"z" * 10)
    assert [cache.get(key(i)) is None for i in range(3)] == [False, True, False]


def test_no_limit_keeps_nothing() -> None:
    cache = MemoryCache(0)
    cache.put(key(0), b"")
    assert cache.get(key(0)) is None
    assert cache.bytes == 0


@pytest.mark.parametrize("length", [12, 400])
def test_the_overhead_of_an_entry_is_what_it_takes(length: int) -> None:
    """At most what is stated, so that the limit holds; at least half of it, so that memory is not wasted."""
    cache, number = MemoryCache(1 << 30), 20_000
    tracemalloc.start()
    try:
        for i in range(number):
            cache.put(key(i), bytes(length))
        taken = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert 0.5 * ENTRY_BYTES < taken / number - length <= ENTRY_BYTES


def test_half_of_the_rows_answer_half_of_every_epoch() -> None:
    cache, chance = MemoryCache(500 * (ENTRY_BYTES + 8)), random.Random(0)
    rows = list(range(1000))
    for _ in range(5):
        chance.shuffle(rows)
        before = cache.hits
        for row in rows:
            if cache.get(key(row)) is None:
                cache.put(key(row), bytes(8))
    assert cache.hits - before == 500


def test_threads_leave_the_count_right() -> None:
    cache = MemoryCache(50 * (ENTRY_BYTES + 20))
    wrong: list[bytes] = []

    def work(seed: int) -> None:
        chance = random.Random(seed)
        for _ in range(3000):
            i = chance.randrange(100)
            found = cache.get(key(i))
            if found is not None and found != bytes([i]) * (i % 40):
                wrong.append(found)
            cache.put(key(i), bytes([i]) * (i % 40))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert cache.hits + cache.misses == 4 * 3000
    kept = [found for i in range(100) if (found := cache.get(key(i))) is not None]
    assert cache.left_out > 0
    assert cache.bytes == sum(len(one) + ENTRY_BYTES for one in kept) <= 50 * (ENTRY_BYTES + 20)

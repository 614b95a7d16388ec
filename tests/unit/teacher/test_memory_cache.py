"""The map in memory: what was used last stays, and the limit is real bytes."""

from __future__ import annotations

import random
import threading
import tracemalloc

import pytest

from distill_dist.teacher.memory_cache import ENTRY_BYTES, MemoryCache
from teacher.cache_cases import key


def test_what_was_used_longest_ago_goes_first() -> None:
    cache = MemoryCache(3 * (ENTRY_BYTES + 10))
    for i in range(3):
        cache.put(key(i), bytes([i]) * 10)
    assert cache.get(key(0)) == bytes(10)
    assert cache.evicted == 0
    cache.put(key(3), b"3" * 10)
    assert [cache.get(key(i)) is None for i in range(4)] == [False, True, False, False]
    assert (cache.hits, cache.misses, cache.evicted) == (4, 1, 1)
    assert cache.bytes == 3 * (ENTRY_BYTES + 10)


def test_putting_counts_as_use_and_the_same_key_counts_once() -> None:
    cache = MemoryCache(2 * (ENTRY_BYTES + 4))
    cache.put(key(0), b"0000")
    cache.put(key(1), b"1111")
    cache.put(key(0), b"00")
    assert cache.bytes == 2 * ENTRY_BYTES + 6
    cache.put(key(2), b"2222")
    assert (cache.get(key(0)), cache.get(key(1)), cache.get(key(2))) == (b"00", None, b"2222")


def test_one_large_row_drives_out_several_and_a_larger_one_none() -> None:
    cache = MemoryCache(1000)
    for i in range(3):
        cache.put(key(i), b"x" * 50)
    assert cache.evicted == 0
    cache.put(key(3), b"y" * (1000 - ENTRY_BYTES + 1))
    assert cache.get(key(3)) is None
    assert cache.evicted == 0
    cache.put(key(4), b"y" * (1000 - ENTRY_BYTES))
    assert cache.evicted == 3
    assert cache.bytes == 1000


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
    assert cache.evicted > 0
    assert cache.bytes == sum(len(one) + ENTRY_BYTES for one in kept) <= 50 * (ENTRY_BYTES + 20)

"""Where keys lie among segments: as a dict would say, in 28 bytes a key."""

from __future__ import annotations

import random
import time
import tracemalloc

import numpy as np
import pytest

from distill_dist.teacher.key_index import KeyIndex, Places
from distill_dist.teacher.segment import KEY, SegmentIndex
from teacher.cache_cases import CONTEXT, key, keys


def array(numbers: list[int]) -> np.ndarray:
    return np.frombuffer(b"".join(keys(numbers)), KEY)


def segment(numbers: list[int], number: int) -> Places:
    """Key i at offset 1000 × number + i, of length i."""
    order = sorted(numbers, key=key)
    offsets = np.array([1000 * number + i for i in order], np.uint32)
    return Places.of(SegmentIndex(CONTEXT, array(order), offsets, np.array(order, np.uint32)), number)


def look_up(index: KeyIndex, numbers: list[int]) -> dict[int, tuple[int, int, int]]:
    which, places = index.find(array(numbers))
    columns = zip(places.segments.tolist(), places.offsets.tolist(), places.lengths.tolist(), strict=True)
    assert [bytes(k) for k in places.keys] == [bytes(k) for k in array(numbers)[which]]
    return {numbers[i]: place for i, place in zip(which.tolist(), columns, strict=True)}


def test_nothing_is_found_in_an_empty_one() -> None:
    assert look_up(KeyIndex(), [1, 2]) == {}


@pytest.mark.parametrize("seed", range(5))
def test_it_says_what_a_dict_says(seed: int) -> None:
    chance = random.Random(seed)
    index, expected = KeyIndex(), {}
    for number in range(40):
        numbers = chance.sample(range(500), chance.choice([1, 2, 5, 80]))
        before = index
        index = index.added(segment(numbers, number))
        assert look_up(before, list(range(500))) == expected, "the one before is as it was"
        expected |= {i: (number, 1000 * number + i, i) for i in numbers}
        assert look_up(index, list(range(500))) == expected
    assert look_up(index, [3, 3]) == look_up(index, [3])
    gone = np.array([1, 7, 39])
    index = index.without(lambda segments: np.isin(segments, gone))
    found = look_up(index, list(range(500)))
    left = {i: place for i, place in expected.items() if place[0] not in (1, 7, 39)}
    assert left
    assert left.items() <= found.items()
    assert not {place[0] for place in found.values()} & {1, 7, 39}


def test_a_key_of_many_segments_is_there_once_for_each_table() -> None:
    index = KeyIndex()
    for number in range(50):
        index = index.added(segment([1, 2, 3], number))
    assert len(index) == 3
    assert look_up(index, [1, 2, 3]) == {i: (49, 49_000 + i, i) for i in (1, 2, 3)}


def test_a_key_that_repeats_in_a_segment_is_there_once() -> None:
    twice = SegmentIndex(CONTEXT, array([4, 4]), np.array([10, 20], np.uint32), np.array([1, 2], np.uint32))
    index = KeyIndex().added(Places.of(twice, 0))
    assert len(index) == 1
    assert look_up(index, [4]) == {4: (0, 10, 1)}


def test_many_segments_make_few_tables_of_28_bytes_a_key() -> None:
    index = KeyIndex()
    for number in range(500):
        index = index.added(segment([2 * number, 2 * number + 1], number))
    assert len(index) == 1000
    assert index.bytes == 28 * 1000
    assert len(index._tables) <= 10  # log2(1000): otherwise a search would look at 500


def test_all_gone_leaves_nothing() -> None:
    index = KeyIndex().added(segment([1, 2], 0)).without(lambda segments: segments == 0)
    assert (len(index), index.bytes) == (0, 0)
    assert look_up(index.added(segment([2], 1)), [1, 2]) == {2: (1, 1002, 2)}


def test_a_million_keys_in_28_bytes_each() -> None:
    """Measured, and said with -s; nothing is asserted of times."""
    million, segments = 1_000_000, 8
    every = np.frombuffer(np.random.default_rng(0).bytes(16 * million), KEY)
    tracemalloc.start()
    try:
        index = KeyIndex()
        for number in range(segments):
            own = np.sort(every[number::segments])
            places = np.arange(len(own), dtype=np.uint32)
            index = index.added(Places.of(SegmentIndex(CONTEXT, own, places, places), number))
        del own, places
        taken, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(index) == million
    assert index.bytes == 28 * million
    assert taken < 28.1 * million
    sought, begin = every[::10], time.perf_counter()
    for start in range(0, len(sought), 64):
        which, _ = index.find(sought[start : start + 64])
        assert len(which) == len(sought[start : start + 64])
    took_s = time.perf_counter() - begin
    print(
        f"{taken / million:.1f} bytes a key, {peak / million:.0f} while merging; "
        f"{len(sought) / took_s:,.0f} keys looked up a second, 64 at a time"
    )

"""The signal cache among processes: several at once, and killed at any moment. Never a wrong row.

DISTILL_KILLS: how many are killed at random moments. What a killed process wrote stays in the page cache;
that it is on the disk in time, for a machine that dies, is for the order of fsync and rename:
test_segment_writer.py.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from distill_dist.teacher.disk_cache import DEFAULT_LIMITS
from distill_dist.teacher.sealed_segments import SealedSegments
from distill_dist.teacher.signal_cache import SignalCache
from multi.signal_cache_child import POINT_ROWS, key, row

KILLS = int(os.environ.get("DISTILL_KILLS", "20"))
RECORDS = 20  # of a segment
CHILD = Path(__file__).with_name("signal_cache_child.py")

pytestmark = pytest.mark.timeout(60 + 4 * KILLS)


@contextmanager
def filling(folder: Path, first: int, until: int, records: int) -> Iterator[subprocess.Popen[str]]:
    """A process at ``fill``, killed at the block's end if it lives."""
    command = [sys.executable, str(CHILD), "fill", *map(str, (folder, first, until, records))]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        try:
            yield child
        finally:
            child.kill()


def reader(folder: Path) -> SignalCache:
    return SignalCache(0, folder, context=bytes(32), limits=DEFAULT_LIMITS, refresh_every_s=0.0)


def found(cache: SignalCache, numbers: range) -> set[int]:
    """Those that are there; every one of them is right."""
    rows = cache.get_many([key(i) for i in numbers])
    for i, payload in zip(numbers, rows, strict=True):
        assert payload in (None, row(i)), i
    return {i for i, payload in zip(numbers, rows, strict=True) if payload is not None}


def only_sealed(folder: Path) -> bool:
    return all(path.suffix == ".seg" for path in folder.iterdir())


def assert_undamaged(cache: SignalCache) -> None:
    counters = cache.counters()
    assert (counters["damaged"], counters["lost_segments"]) == (0, 0)


def test_two_writers_and_a_reader_at_once(tmp_path: Path) -> None:
    cache, sizes, deadline = reader(tmp_path), [], time.monotonic() + 60
    # both write 100 to 199
    with filling(tmp_path, 0, 200, 7) as one, filling(tmp_path, 100, 300, 7) as two:
        while (
            len(now := found(cache, range(300))) < 292
        ):  # 200 = 28 × 7 + 4: the last rows of each are not sealed
            assert not sizes or len(now) >= sizes[-1], "rows do not go again"
            sizes.append(len(now))
            assert time.monotonic() < deadline
        for child in (one, two):
            child.communicate(timeout=20)
            assert child.returncode == 0
    assert len(set(sizes)) > 3, "read while they wrote"
    assert found(cache, range(300)) == set(range(300))
    assert only_sealed(tmp_path)
    assert_undamaged(cache)
    cache.close()


def kill_one(folder: Path, first: int, wait_s: float) -> int:
    """How many rows a writer, killed ``wait_s`` after its third, had handed over."""
    with filling(folder, first, 0, RECORDS) as child:
        assert child.stdout is not None
        lines = [child.stdout.readline() for _ in range(3)]
        time.sleep(wait_s)
        child.kill()
        lines += child.stdout.read().splitlines()
    assert child.returncode == -signal.SIGKILL, lines
    assert lines[0] == f"put {first}\n"
    return len(lines)


def test_writers_killed_at_random_moments(tmp_path: Path) -> None:
    chance, first, in_the_act, written = random.Random(0), 0, 0, set()
    for _ in range(KILLS):
        count = kill_one(tmp_path, first, chance.uniform(0, 0.05))
        numbers = range(first, first + count)
        sealed = SealedSegments(tmp_path, refresh_every_s=0.0)
        sealed.refresh()
        seen = [row_of is not None for row_of in sealed.get_many([key(i) for i in numbers])]
        assert seen == sorted(seen, reverse=True)
        assert seen.count(False) <= RECORDS, "others miss the unsealed part at most"
        in_the_act += not only_sealed(tmp_path)
        cache = reader(tmp_path)
        written |= set(numbers)
        first += count
        # one more may have been written than was said
        there = found(cache, range(first + 2))
        assert written <= there <= written | {first}, (
            "the next one on this host finds the unsealed part as well"
        )
        assert_undamaged(cache)
        cache.close()
        assert only_sealed(tmp_path)
        written, first = there, first + 1
    # most of the time it is there; between a rename and the next file, while the folder is synced, it is not
    assert in_the_act > KILLS // 5, "the moments were not those of a writer at work"


def test_a_writer_killed_at_each_thing_that_it_does_to_a_file(tmp_path: Path) -> None:
    subprocess.run([sys.executable, str(CHILD), "points", str(tmp_path)], check=True, timeout=60)
    folders = sorted((path for path in tmp_path.iterdir()), key=lambda path: int(path.name))
    counts, left = [], 0
    for folder in folders:
        left += not only_sealed(folder)
        cache = reader(folder)
        there = found(cache, range(POINT_ROWS + 1))
        assert there == set(range(len(there)))
        counts.append(len(there))
        assert_undamaged(cache)
        cache.close()
        assert only_sealed(folder)
    assert counts == sorted(counts), "what was written once is not lost again"
    assert set(counts) == set(range(POINT_ROWS + 1))
    assert left > 10


def test_segments_that_another_job_removes_crash_nobody(tmp_path: Path) -> None:
    cache, chance, removed = reader(tmp_path), random.Random(0), 0
    with filling(tmp_path, 0, 0, 2):
        end = time.monotonic() + 2
        while time.monotonic() < end:
            found(cache, range(200))
            there = sorted(tmp_path.glob("*.seg"))
            for path in chance.sample(there, k=min(2, len(there))):
                path.unlink()
                removed += 1
    assert removed > 20
    assert cache.counters()["disk_hits"] > 0
    assert_undamaged(cache)
    cache.close()

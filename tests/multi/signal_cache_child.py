"""Processes that fill a signal cache, and die: see test_signal_cache.py.

``fill FOLDER FIRST UNTIL RECORDS`` writes rows FIRST … UNTIL - 1 into segments of so many records, prints
``put I`` when row I was handed over, and waits for its standard input to end before it closes the cache;
UNTIL 0: goes on until it is killed. ``points FOLDER`` writes 5 rows in FOLDER/0, FOLDER/1 … and dies in
FOLDER/k at the k-th thing that it does to a file.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from distill_dist.teacher.disk_cache import SealLimits
from distill_dist.teacher.signal_cache import SignalCache

POINT_ROWS = 5


def key(i: int) -> bytes:
    """The key of row i."""
    return hashlib.md5(str(i).encode()).digest()


def row(i: int) -> bytes:
    """A function of the key, of 32 bytes to 96 kB: the largest are torn most often."""
    return hashlib.sha256(key(i)).digest() * (1 + i * i * 37 % 3000)


def cache_in(folder: Path, records: int) -> SignalCache:
    """Without memory, so that every row comes from disk."""
    return SignalCache(0, folder, context=bytes(32), limits=SealLimits(records=records), refresh_every_s=0.05)


def fill(folder: Path, first: int, until: int, records: int) -> None:
    """See the module."""
    cache = cache_in(folder, records)
    numbers: Iterator[int] = iter(range(first, until)) if until else itertools.count(first)
    for i in numbers:
        cache.put_many([key(i)], [row(i)])
        print("put", i, flush=True)
    sys.stdin.read()
    cache.close()


def points(root: Path) -> None:
    """One folder for every place to die in, until the writer lives through."""
    for point in itertools.count():
        if (child := os.fork()) == 0:
            _die_at(point)
            cache = cache_in(root / str(point), 3)
            for i in range(POINT_ROWS):
                cache.put_many([key(i)], [row(i)])
            cache.close()
            os._exit(0)
        if os.waitpid(child, 0)[1] == 0:
            return


def _die_at(point: int) -> None:
    """Before the point-th call that changes a file; in a write, with half of it done."""
    seen = itertools.count()

    def dying(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*arguments: Any, **more: Any) -> Any:
            if next(seen) == point:
                if name == "pwritev":
                    descriptor, parts, offset = arguments
                    content = b"".join(parts)
                    os.pwrite(descriptor, content[: len(content) // 2], offset)
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*arguments, **more)

        return wrapper

    for name in ("pwritev", "fsync", "rename", "open"):
        setattr(os, name, dying(name, getattr(os, name)))


if __name__ == "__main__":
    if sys.argv[1] == "fill":
        fill(Path(sys.argv[2]), *(int(number) for number in sys.argv[3:]))
    else:
        points(Path(sys.argv[2]))

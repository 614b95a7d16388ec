"""Signals kept in memory: least recently used first out."""

from __future__ import annotations

import threading
from collections import OrderedDict

# What an entry takes besides its payload: the key (56), the payload's own header (33, rounded up to 48),
# the node and the slots of the map (about 150). Measured in tests/unit/teacher/test_memory_cache.py.
ENTRY_BYTES = 256


class MemoryCache:
    """A map from key to payload of at most ``limit`` bytes, thread-safe."""

    def __init__(self, limit: int) -> None:
        """``limit`` in bytes, payloads and ``ENTRY_BYTES`` for each; 0 keeps nothing."""
        assert limit >= 0, limit
        self._limit = limit
        self._rows: OrderedDict[bytes, bytes] = OrderedDict()
        self._lock = threading.Lock()
        self.bytes = 0
        self.hits = 0
        self.misses = 0
        self.evicted = 0

    def get(self, key: bytes) -> bytes | None:
        """The payload, which is then the one used last; None where there is none."""
        with self._lock:
            row = self._rows.get(key)
            if row is None:
                self.misses += 1
                return None
            self.hits += 1
            self._rows.move_to_end(key)
            return row

    def put(self, key: bytes, row: bytes) -> None:
        """Keep the payload, unless it alone exceeds the limit, and let go what was used longest ago."""
        size = len(row) + ENTRY_BYTES
        if size > self._limit:
            return
        with self._lock:
            old = self._rows.pop(key, None)
            if old is not None:
                self.bytes -= len(old) + ENTRY_BYTES
            self._rows[key] = row
            self.bytes += size
            while self.bytes > self._limit:
                _, gone = self._rows.popitem(last=False)
                self.bytes -= len(gone) + ENTRY_BYTES
                self.evicted += 1

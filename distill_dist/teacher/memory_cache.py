"""Signals kept in memory: as many as fit, and those for good."""

from __future__ import annotations

import threading

# What an entry takes besides its payload: the key (56), the payload's own header (33, rounded up to 48) and the slots
# of the map (about 60). Measured in tests/unit/teacher/test_memory_cache.py.
ENTRY_BYTES = 176


class MemoryCache:
    """A map from key to payload of at most ``limit`` bytes, thread-safe.

    Nothing makes room for anything: an epoch asks for every row once, in another order each time, so that a share c of
    the rows, once it is here, answers c of all questions. Letting go what was used longest ago would keep rows that
    were just used and come last: about c²/2 of the questions.
    """

    def __init__(self, limit: int) -> None:
        """``limit`` in bytes, payloads and ``ENTRY_BYTES`` for each; 0 keeps nothing."""
        assert limit >= 0, limit
        self._limit = limit
        self._rows: dict[bytes, bytes] = {}
        self._lock = threading.Lock()
        self.bytes = 0
        self.hits = 0
        self.misses = 0
        self.left_out = 0

    def get(self, key: bytes) -> bytes | None:
        """The payload; None where there is none."""
        with self._lock:
            row = self._rows.get(key)
            if row is None:
                self.misses += 1
            else:
                self.hits += 1
            return row

    def peek(self, key: bytes) -> bytes | None:
        """As ``get``, but not counted."""
        with self._lock:
            return self._rows.get(key)

    def put(self, key: bytes, row: bytes) -> None:
        """Keep the payload if it fits and is not there."""
        size = len(row) + ENTRY_BYTES
        with self._lock:
            if key in self._rows:
                return
            if self.bytes + size > self._limit:
                self.left_out += 1
                return
            self._rows[key] = row
            self.bytes += size

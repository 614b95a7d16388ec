"""Signals that need no teacher any more: in memory, and on a disk that hosts and jobs share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from distill_dist.teacher.disk_cache import COUNTERS, DEFAULT_LIMITS, DiskCache, SealLimits
from distill_dist.teacher.memory_cache import MemoryCache
from distill_dist.teacher.segment import KEY_BYTES


class SignalCache:
    """Encoded rows by their 16-byte key, which holds teacher, spec and version; thread-safe, for one process.

    A row is a function of its key: it does not matter who computed it, nor when. What is lost or damaged is
    a miss.
    """

    def __init__(
        self,
        memory_bytes: int,
        folder: Path | None,
        *,
        context: bytes,
        disk_bytes: int | None = None,
        limits: SealLimits = DEFAULT_LIMITS,
        refresh_every_s: float = 5.0,
        seals_itself: bool = True,
    ) -> None:
        """``memory_bytes`` of rows stay in memory; ``folder`` keeps all, if given.

        ``context``: 32 bytes that say whose signals this cache writes, for tools that tidy the folder.
        ``disk_bytes``: this process writes no more once the folder's segments have that many. ``limits``:
        when they are sealed. ``refresh_every_s``: how often, in seconds, others' new segments are looked
        for. ``seals_itself``: see DiskCache.
        """
        self._memory = MemoryCache(memory_bytes)
        self._disk = None
        if folder is not None:
            self._disk = DiskCache(
                folder,
                context=context,
                limits=limits,
                max_bytes=disk_bytes,
                refresh_every_s=refresh_every_s,
                seals_itself=seals_itself,
            )

    def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """The row of each key, None for a miss. One found on disk is in memory from then on."""
        assert all(len(key) == KEY_BYTES for key in keys), keys
        rows = [self._memory.get(key) for key in keys]
        if self._disk is None:
            return rows
        missing = [i for i, row in enumerate(rows) if row is None]
        for i, row in zip(missing, self._disk.get_many([keys[i] for i in missing]), strict=True):
            if row is not None:
                rows[i] = row
                self._memory.put(keys[i], row)
        return rows

    @property
    def is_due(self) -> bool:
        """Whether what was written is to be sealed, by who vouches for it."""
        return self._disk is not None and self._disk.can_write and self._disk.is_due

    @property
    def has_open(self) -> bool:
        """Whether rows on disk are not sealed yet."""
        return self._disk is not None and self._disk.has_open

    def seal(self) -> None:
        """Make what was written durable, and seen by others."""
        if self._disk is not None:
            self._disk.seal()

    @property
    def has_failed(self) -> bool:
        """Whether rows did not reach the disk that should have, the last ones at ``close`` included."""
        return self._disk is not None and self._disk.has_failed

    def peek(self, key: bytes) -> bytes | None:
        """The row if it is in memory, for who has asked for it before: not counted."""
        return self._memory.peek(key)

    def put_many(self, keys: Sequence[bytes], rows: Sequence[bytes]) -> None:
        """Keep the rows. On disk they are durable, and seen by others, once their segment is sealed."""
        assert all(len(key) == KEY_BYTES for key in keys), keys
        for key, row in zip(keys, rows, strict=True):
            self._memory.put(key, row)
        if self._disk is not None:
            self._disk.put_many(keys, rows)

    @property
    def can_write(self) -> bool:
        """Whether rows still reach the disk; False without one."""
        return self._disk is not None and self._disk.can_write

    def refresh(self) -> None:
        """Look for what others sealed, now instead of within ``refresh_every_s``."""
        if self._disk is not None:
            self._disk.refresh()

    def close(self) -> None:
        """Seal what is open. Nothing is written to disk after that; reading goes on."""
        if self._disk is not None:
            self._disk.close()

    def drop(self) -> None:
        """Do not keep on disk what is not sealed yet: nobody vouches for the teacher that it came from."""
        if self._disk is not None:
            self._disk.drop()

    def counters(self) -> dict[str, int]:
        """Totals since the start, in rows: hits, misses, damaged …; and bytes kept now."""
        on_disk = dict.fromkeys(COUNTERS, 0) if self._disk is None else self._disk.counters()
        return {
            "memory_hits": self._memory.hits,
            "misses": self._memory.misses - on_disk["disk_hits"],
            "left_out": self._memory.left_out,
            "memory_bytes": self._memory.bytes,
            **on_disk,
        }

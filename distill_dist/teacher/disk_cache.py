"""Signals kept on disk: read from every sealed segment of a folder, written to a segment of our own."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from distill_dist.durable import sync_folder
from distill_dist.teacher.leftovers import QUIET_S, recover
from distill_dist.teacher.sealed_segments import SealedSegments
from distill_dist.teacher.segment import MAX_SEGMENT_BYTES
from distill_dist.teacher.segment_writer import SegmentWriter

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SealLimits:
    """A segment is sealed, which waits for the disk, as soon as it reaches one of these."""

    bytes: int = 256 << 20
    """A payload larger than that is not kept on disk."""
    records: int = 1 << 17
    """The open segment takes about 180 bytes of memory a record, sealed ones 28."""
    age_s: float = 300.0
    """Seconds since its first record; looked at whenever the cache is asked or given something."""

    def __post_init__(self) -> None:
        """Hold what the format and ``leftovers`` rely on."""
        assert 2 * self.bytes <= MAX_SEGMENT_BYTES, self.bytes
        assert 2 * self.age_s <= QUIET_S, self.age_s


DEFAULT_LIMITS = SealLimits()
COUNTERS = ("disk_hits", "damaged", "lost_segments", "written", "disk_bytes")


class DiskCache:
    """Payloads by key, in a folder that any number of hosts and jobs share; thread-safe, for one process.

    Nothing here raises OSError: what cannot be read is a miss, and the first thing that cannot be written
    ends the writing, with a warning, but not the reading.
    """

    def __init__(
        self,
        folder: Path,
        *,
        context: bytes,
        limits: SealLimits,
        max_bytes: int | None = None,
        refresh_every_s: float = 5.0,
        seals_itself: bool = True,
    ) -> None:
        """Makes the folder, recovers what dead writers left in it, and reads the index of every segment.

        ``context`` as of SegmentWriter. ``max_bytes``: no more is written once all the folder's segments
        have that many. ``seals_itself``: False for who vouches for the rows before, and seals or drops
        them when ``is_due``; what it leaves when it dies is not recovered.
        """
        self._folder, self._context, self._limits, self._max_bytes = folder, context, limits, max_bytes
        self._sealed = SealedSegments(folder, refresh_every_s=refresh_every_s)
        self._write_lock = threading.Lock()  # held while the disk is waited for: readers do without
        self._writer: SegmentWriter | None = None  # stays, to be read, when it can write no more
        self._seals_itself = seals_itself
        self._can_write = True
        self.has_failed = False  # to write, also while closing
        self._recovered_s = time.monotonic()
        self._count_lock = threading.Lock()
        self._hits = 0
        self._written = 0
        with self._write_lock:
            self._try(self._begin)
        self._sealed.refresh(force=True)

    def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """The payload of each key, None for a miss. Every so often it looks for new segments first."""
        self._see_to_what_is_due()
        writer = self._writer
        rows = [None if writer is None else writer.read(key) for key in keys]
        # after the writer: what it sealed and let go in between is among the sealed
        missing = [i for i, row in enumerate(rows) if row is None]
        for i, row in zip(missing, self._sealed.get_many([keys[i] for i in missing]), strict=True):
            rows[i] = row
        with self._count_lock:
            self._hits += sum(row is not None for row in rows)
        return rows

    def put_many(self, keys: Sequence[bytes], rows: Sequence[bytes]) -> None:
        """Append the payloads, those of keys in the open segment excepted; durable once sealed."""
        with self._write_lock:
            for key, row in zip(keys, rows, strict=True):
                self._try(self._put, key, row)

    @property
    def can_write(self) -> bool:
        """False once something could not be written, or when it is closed."""
        return self._can_write

    def refresh(self) -> None:
        """Look for segments that others sealed, now."""
        self._sealed.refresh(force=True)

    def close(self) -> None:
        """Seal what is open. Nothing is written after that; reading goes on."""
        with self._write_lock:
            self._try(self._seal)
            self._can_write = False
            if self._writer is not None:
                self._writer.close()
                self._writer = None
        self._sealed.close()

    def drop(self) -> None:
        """Remove the open segment: nobody vouches for it. What comes goes into another one."""
        with self._write_lock:
            writer, self._writer = self._writer, None
            if writer is not None:
                writer.discard()
                writer.close()
                self._written -= len(writer)

    def counters(self) -> dict[str, int]:
        """COUNTERS: records read, damaged and written, segments ignored, bytes in the folder when last seen."""
        values = (self._hits, self._sealed.damaged, self._sealed.lost, self._written, self._bytes())
        return dict(zip(COUNTERS, values, strict=True))

    def _begin(self) -> None:
        if not self._folder.is_dir():
            self._folder.mkdir(parents=True, exist_ok=True)
            sync_folder(self._folder.parent)
        self._recover()

    def _recover(self) -> None:
        self._recovered_s = time.monotonic()
        saved = recover(self._folder)
        if saved:
            _log.info("%s: %d cached signals of processes that died were recovered", self._folder, saved)

    def _see_to_what_is_due(self) -> None:
        if self._write_lock.acquire(blocking=False):  # else the other thread sees to it
            try:
                self._try(self._seal_if_due)
                if time.monotonic() - self._recovered_s > QUIET_S:
                    self._try(self._recover)
            finally:
                self._write_lock.release()
        self._sealed.refresh()

    def _put(self, key: bytes, row: bytes) -> None:
        if len(row) > self._limits.bytes or (self._writer is not None and key in self._writer):
            return
        if self._max_bytes is not None and self._bytes() + len(row) > self._max_bytes:
            self._seal()
            self._stop(f"it holds the {self._max_bytes} bytes that it may")
            return
        if self._writer is None:
            self._writer = SegmentWriter(self._folder, self._context, is_checked=self._seals_itself)
        self._writer.append(key, row)
        self._written += 1
        self._seal_if_due()

    @property
    def is_due(self) -> bool:
        """Whether the open segment has reached one of its limits."""
        writer, limits = self._writer, self._limits
        return writer is not None and (
            writer.bytes >= limits.bytes
            or len(writer) >= limits.records
            or time.monotonic() - writer.born_s > limits.age_s
        )

    @property
    def has_open(self) -> bool:
        """Whether rows are not sealed yet."""
        return self._can_write and self._writer is not None

    def seal(self) -> None:
        """Make what was written durable, and seen by others."""
        with self._write_lock:
            self._try(self._seal)

    def _seal_if_due(self) -> None:
        if self._seals_itself and self.is_due:
            self._seal()

    def _seal(self) -> None:
        writer = self._writer
        if writer is None:
            return
        sealed = writer.seal()
        if sealed is not None:
            self._sealed.adopt(sealed)
        self._writer = None
        writer.close()

    def _try(self, write: Callable[..., None], *arguments: bytes) -> None:
        """Write, under the lock, if nothing has failed yet."""
        if not self._can_write:
            return
        try:
            write(*arguments)
        except OSError as error:
            self._stop(str(error))

    def _stop(self, reason: str) -> None:
        self._can_write, self.has_failed = False, True
        _log.warning(
            "no more signals are written to %s, those in it are still read: %s", self._folder, reason
        )

    def _bytes(self) -> int:
        writer = self._writer
        return self._sealed.bytes + (0 if writer is None else writer.bytes)

"""One segment as it is written: by one writer, under a name of its own, and renamed when it is sealed."""

from __future__ import annotations

import fcntl
import os
import re
import socket
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from distill_dist.durable import sync_folder
from distill_dist.teacher.segment import (
    header,
    read_payload,
    record_head,
    seal,
)

OPEN, SEALED = ".open", ".seg"
UNCHECKED = ".unchecked"  # open, of a teacher that is asked about its probe's rows before they are sealed
_NAME = re.compile(r"signals-(.+)-[0-9a-f]{16}")


def host_name() -> str:
    """This host, as it stands in the names of its segments."""
    return re.sub(r"[^A-Za-z0-9.]", "-", socket.gethostname())[:64] or "host"


def host_of(path: Path) -> str | None:
    """The host whose writer made this segment, None where no writer of ours named it."""
    match = _NAME.fullmatch(path.stem)
    return match[1] if match else None


class SegmentWriter:
    """Appends records to ``signals-HOST-ID.open``, ID random, which ``seal`` makes ``signals-HOST-ID.seg``.

    Until then it is ``signals-HOST-ID.unchecked`` where nobody vouches yet for what is written.

    It holds a lock on the file (flock: of this open file, so that a second writer of this process counts as
    another) until it is closed or its process ends, however it ends: see leftovers.py. One thread writes;
    any thread reads.
    """

    def __init__(self, folder: Path, context: bytes, *, is_checked: bool = True) -> None:
        """Makes the file, or OSError. ``context``: 32 bytes that say which teacher the signals are of.

        ``is_checked``: whether others may save what is written here if this process dies.
        """
        self._context = context
        self._descriptor, self._path = _make(folder, OPEN if is_checked else UNCHECKED)
        self._lock = threading.Lock()  # of the two below, for readers
        self._places: dict[bytes, tuple[int, int]] = {}  # key -> offset and length
        self._closed = False
        self.bytes = 0
        self.born_s = time.monotonic()
        try:
            self._append(header(context))
        except OSError:
            self.discard()
            self.close()
            raise

    def __len__(self) -> int:
        """Records so far."""
        return len(self._places)

    def __contains__(self, key: bytes) -> bool:
        """Whether it has a record of this key."""
        return key in self._places

    def append(self, key: bytes, payload: bytes) -> None:
        """Write a record, which can be read at once and is durable once sealed; or OSError, and nothing is."""
        offset = self.bytes
        self._append(record_head(key, payload), payload)
        with self._lock:
            self._places[key] = offset, len(payload)

    def read(self, key: bytes) -> bytes | None:
        """The payload of a record written here; None if there is none, or damaged, or the writer is closed."""
        with self._lock:
            place = self._places.get(key)
            if place is None or self._closed:
                return None
            try:
                return read_payload(self._descriptor, key, *place)
            except OSError:
                return None

    def seal(self) -> Path | None:
        """Make everything durable and seen by others: the segment's path. Reading goes on until ``close``.

        None where there was nothing to seal, or where somebody took this writer for dead and took the file
        over. OSError, and then the file stays as it is for ``leftovers.recover``.
        """
        if not self._places:
            self.discard()
            return None
        offsets, lengths = zip(*self._places.values(), strict=True)
        self._append(seal(self._context, list(self._places), offsets, lengths))
        os.fsync(self._descriptor)
        sealed = self._path.with_suffix(SEALED)
        try:
            self._path.rename(sealed)
        except FileNotFoundError:
            if not sealed.parent.is_dir():
                raise  # nobody took it over: the folder is gone
            return None
        sync_folder(sealed.parent)
        return sealed

    def discard(self) -> None:
        """Remove the file, where that is possible."""
        with suppress(OSError):
            self._path.unlink()

    def close(self) -> None:
        """Let go of the file, sealed or not; twice does nothing."""
        with self._lock:
            if not self._closed:
                self._closed = True
                os.close(self._descriptor)

    def _append(self, *parts: bytes) -> None:
        """All of the bytes or none: what a full disk took of them is cut off again."""
        left: Sequence[memoryview] = [memoryview(part) for part in parts]
        end = self.bytes
        try:
            while left:
                written = os.pwritev(self._descriptor, left, end)
                end += written
                left = _rest(left, written)
        except OSError:
            with suppress(OSError):  # a torn record at the end is for the scan to find
                os.ftruncate(self._descriptor, self.bytes)
            raise
        self.bytes = end


def _rest(parts: Sequence[memoryview], written: int) -> list[memoryview]:
    """The parts without their first ``written`` bytes."""
    found = []
    for part in parts:
        rest = part[min(written, len(part)) :]
        written -= len(part) - len(rest)
        if len(rest):
            found.append(rest)
    return found


def _make(folder: Path, suffix: str) -> tuple[int, Path]:
    """A new file, open and locked."""
    while True:
        path = folder / f"signals-{host_name()}-{os.urandom(8).hex()}{suffix}"
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        # another process that looks for leftovers may find the file before its lock: then it is theirs to
        # remove
        if lock(descriptor) is not False and is_file(descriptor, path):
            return descriptor, path
        os.close(descriptor)


def lock(descriptor: int) -> bool | None:
    """Lock the open file until it is closed: False if somebody else has, None if the disk has no locks."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):  # the second is how a network disk may say so
        return False
    except OSError:
        return None
    return True


def is_file(descriptor: int, path: Path) -> bool:
    """Whether the open file is the one that has this name now."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False

"""The sealed segments of a folder, those of every host and job, as they are found and read."""

from __future__ import annotations

import errno
import logging
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Sequence, Set
from pathlib import Path

import numpy as np

from distill_dist.teacher.key_index import KeyIndex, Places
from distill_dist.teacher.segment import KEY, DamagedSegment, SegmentIndex, read_index, read_payload
from distill_dist.teacher.segment_writer import SEALED

MAX_OPEN = 128  # files kept open, of which a process may often have 1,024
_GONE = (errno.ENOENT, errno.ESTALE)  # somebody removed it; the second is how a network disk says so
_IGNORED = -1  # a number that no segment has
_log = logging.getLogger(__name__)


class SealedSegments:
    """Payloads by key; thread-safe. Nothing here raises OSError: what cannot be read is not there.

    Segments come and go while this is in use, and are never changed.
    """

    def __init__(self, folder: Path, *, refresh_every_s: float) -> None:
        """Reads nothing yet: see ``refresh``."""
        self._folder, self._refresh_every_s = folder, refresh_every_s
        self._lock = threading.Lock()  # of whoever changes what is known; readers use what is there
        self._index = KeyIndex()
        self._names: list[str] = []  # of each number
        self._known: dict[str, tuple[int, int]] = {}  # name -> number and bytes
        self._refreshed_s = -float("inf")
        self._files: OrderedDict[int, _OpenFile] = OrderedDict()  # number -> file, the last used at the end
        self._files_lock = threading.Lock()
        self._count_lock = threading.Lock()
        self._warned: set[str] = set()
        self.bytes = 0
        self.damaged = 0
        self.lost = 0

    def __len__(self) -> int:
        """Keys that are known."""
        return len(self._index)

    def refresh(self, *, force: bool = False) -> None:
        """Look for new segments and for those that are gone, unless that was done within ``refresh_every_s``.

        Does nothing while another thread does it. ``force``: in any case, and it is done on return.
        """
        if not force and time.monotonic() - self._refreshed_s < self._refresh_every_s:
            return
        if not self._lock.acquire(blocking=force):
            return
        try:
            there = self._list()
            if there is not None:
                self._forget(self._known.keys() - there.keys())
                for name in sorted(there.keys() - self._known.keys(), key=there.__getitem__):
                    self._adopt(name)
            self._refreshed_s = time.monotonic()
        finally:
            self._lock.release()

    def adopt(self, path: Path) -> None:
        """Take in a segment that was sealed just now."""
        with self._lock:
            if path.name not in self._known:
                self._adopt(path.name)

    def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """The payload of each key; None for a miss, which a damaged record is too."""
        rows: list[bytes | None] = [None] * len(keys)
        if keys:
            which, places = self._index.find(np.frombuffer(b"".join(keys), KEY))
            columns = (places.segments, places.offsets, places.lengths)
            for i, place in zip(
                which.tolist(), zip(*(c.tolist() for c in columns), strict=True), strict=True
            ):
                rows[i] = self._read(keys[i], *place)
        return rows

    def close(self) -> None:
        """Close the files; one that is asked for later is opened again."""
        with self._files_lock:
            self._files.clear()

    def _list(self) -> dict[str, int] | None:
        """The segments' names and when each was written to last, in ns; None if the folder cannot be read."""
        there = {}
        try:
            with os.scandir(self._folder) as entries:
                for entry in entries:
                    if entry.name.endswith(SEALED):
                        there[entry.name] = 0 if entry.name in self._known else _modified_ns(entry)
        except OSError as error:
            if error.errno in _GONE:
                return {}
            self._count("", f"cannot be listed: {error}")
            return None
        return there

    def _adopt(self, name: str) -> None:
        """Under the lock; a file that is gone is left out, one that does not check ignored from now on."""
        try:
            index, size = _open_index(self._folder / name)
        except (DamagedSegment, OSError) as error:
            if isinstance(error, OSError) and error.errno in _GONE:
                return
            self._known[name] = (_IGNORED, 0)
            self._count(name, f"is ignored: {error}", lost=1)
            return
        number = len(self._names)
        self._names.append(name)  # before the index that names it
        self._known[name] = (number, size)
        self.bytes += size
        self._index = self._index.added(Places.of(index, number))

    def _forget(self, names: Set[str]) -> None:
        """Under the lock."""
        if not names:
            return
        gone = [self._known.pop(name) for name in names]
        self.bytes -= sum(size for _, size in gone)
        numbers = np.array([number for number, _ in gone])
        self._index = self._index.without(lambda segments: np.isin(segments, numbers))
        with self._files_lock:
            for number, _ in gone:
                self._files.pop(number, None)

    def _read(self, key: bytes, number: int, offset: int, length: int) -> bytes | None:
        name = self._names[number]
        try:
            file = self._file(number, name)  # a name, so that it stays open until it is read
            payload = read_payload(file.descriptor, key, offset, length)
        except OSError as error:
            with self._files_lock:
                self._files.pop(number, None)
            if error.errno not in _GONE:
                self._count(name, f"cannot be read: {error}", damaged=1)
            return None
        if payload is None:
            self._count(name, "has damaged signals, which are computed again", damaged=1)
        return payload

    def _file(self, number: int, name: str) -> _OpenFile:
        with self._files_lock:
            if number in self._files:
                self._files.move_to_end(number)
                return self._files[number]
        file = _OpenFile(os.open(self._folder / name, os.O_RDONLY))  # which a network disk takes its time for
        with self._files_lock:
            self._files[number] = file
            if len(self._files) > MAX_OPEN:
                self._files.popitem(last=False)
        return file

    def _count(self, name: str, problem: str, *, damaged: int = 0, lost: int = 0) -> None:
        """Count what went wrong with a segment, and warn the first time."""
        with self._count_lock:
            self.damaged += damaged
            self.lost += lost
            is_first = name not in self._warned
            self._warned.add(name)
        if is_first:
            _log.warning("cached signals: %s %s", self._folder / name, problem)


class _OpenFile:
    """A file's descriptor, closed once the last thread that reads from it lets go."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def __del__(self) -> None:
        os.close(self.descriptor)


def _open_index(path: Path) -> tuple[SegmentIndex, int]:
    """The index and the file's bytes; DamagedSegment or OSError."""
    file = _OpenFile(os.open(path, os.O_RDONLY))
    return read_index(file.descriptor), os.fstat(file.descriptor).st_size


def _modified_ns(entry: os.DirEntry[str]) -> int:
    try:
        return entry.stat().st_mtime_ns
    except FileNotFoundError:  # gone since it was listed
        return 0

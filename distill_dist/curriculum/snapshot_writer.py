"""Snapshots as they are written: by several processes, on several hosts, into one folder of a shared disk.

One process calls ``begin``; after a barrier all write their blocks; after another one calls ``commit`` with the
entries of all. A crash at any point leaves the old snapshots or the new one; what it leaves besides has a name
that starts with a dot, and goes when the next writer begins. Only one run may write in a folder at a time: the lock
of its run_dir sees to that.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
from collections.abc import Sequence, Set
from pathlib import Path

from distill_dist.curriculum.scores import Columns
from distill_dist.curriculum.snapshot import list_snapshots
from distill_dist.curriculum.snapshot_record import (
    FILE,
    FOLDER,
    RECORD,
    ROW_BYTES,
    BlockEntry,
    Origin,
    Record,
    block_bytes,
    file_name,
    folder_name,
)
from distill_dist.durable import sync_folder
from distill_dist.errors import UserError

# being written; moved aside by a commit (as durable.durable_folder names it); being removed
_LEFTOVER = re.compile(r"\.(snapshot-\d{5,})\.(?:tmp|(old)|[0-9a-f]{8}\.gone)")
_NOT_SHARED = "run_dir must be on a disk that every host of the run shares"
_log = logging.getLogger(__name__)


class SnapshotWriter:
    """Writes snapshot ``number`` below ``root``; every process of the run has one."""

    def __init__(self, root: Path, number: int) -> None:
        """Touches nothing. ``number`` counts from 1; 0 is a teacher's or a file's."""
        assert number >= 0, number
        self._root = root
        self._number = number
        self._place = root / folder_name(number)
        # not named by the process, as elsewhere: all of them write into it
        self._temporary = _hidden(self._place, "tmp")

    def begin(self) -> None:
        """Make room, in one process: dead writers' remains go. UserError if something else has the place."""
        self._root.mkdir(parents=True, exist_ok=True)
        sync_folder(self._root.parent)
        tidy(self._root)
        if self._place not in list_snapshots(self._root) and os.path.lexists(self._place):
            raise UserError(f"{self._place} is in the way and not a snapshot: move it elsewhere")
        self._temporary.mkdir()

    def write_block(self, index: int, columns: Columns, *, num_nan: int = 0) -> BlockEntry:
        """Write a block's file, durably, in any process; the same block again replaces it.

        ``num_nan`` is ``Fresh.num_nan``. OSError on a full disk.
        """
        content, entry = block_bytes(index, columns, num_nan=num_nan)
        try:
            _write(self._temporary / file_name(index), content)
        except FileNotFoundError as error:
            raise UserError(f"{self._temporary} is not there: {_NOT_SHARED}") from error
        return entry

    def commit(
        self, entries: Sequence[BlockEntry], origin: Origin, *, keep: int, in_use: Set[str] = frozenset()
    ) -> Path:
        """The snapshot's folder, in place from one moment to the next, and old ones pruned; in one process.

        ``entries``: those of all blocks, in order. See :func:`prune` for ``keep`` and ``in_use``.
        """
        for index, entry in enumerate(entries):
            assert entry.index == index, (
                f"block {index} has the entry of {entry.index}: nobody or two wrote it"
            )
            self._check_size(entry)
        _write(self._temporary / RECORD, Record(self._number, origin, tuple(entries)).to_bytes())
        sync_folder(self._temporary)
        self._put_in_place()
        prune(self._root, keep, in_use | {self._place.name}, up_to=self._number)
        return self._place

    def _check_size(self, entry: BlockEntry) -> None:
        path = self._temporary / file_name(entry.index)
        try:
            size = path.stat().st_size
        except FileNotFoundError as error:
            raise UserError(f"{path} is not there although it was written: {_NOT_SHARED}") from error
        if size != entry.rows * ROW_BYTES:
            raise UserError(f"{path} has {size} of {entry.rows * ROW_BYTES} bytes written: {_NOT_SHARED}")

    def _put_in_place(self) -> None:
        """No system moves a folder onto a full one in one step everywhere: the old one steps aside, see ``tidy``."""
        aside = _hidden(self._place, "old")
        replaces = self._place.exists()
        if replaces:
            self._place.replace(aside)
        self._temporary.replace(self._place)
        sync_folder(self._root)
        if replaces:
            _discard(aside)


def tidy(root: Path) -> None:
    """Put back or remove what dead writers left in ``root``; in one process, before snapshots are read or written.

    A snapshot that stepped aside for one that never came is put back.
    """
    if not root.is_dir():
        return
    for path in sorted(root.iterdir()):
        name = _LEFTOVER.fullmatch(path.name)
        if name is None or path.is_symlink() or not path.is_dir():
            continue
        if name[2] and not os.path.lexists(root / name[1]):
            path.replace(root / name[1])
        else:
            _discard(path)
    sync_folder(root)


def prune(root: Path, keep: int, in_use: Set[str], *, up_to: int | None = None) -> None:
    """Remove all but the newest ``keep`` snapshots and those whose folder's name is ``in_use``; in one process.

    Snapshots after number ``up_to`` (of a future that a resumed run has not reached) stay and do not count. A
    folder that holds anything besides a snapshot stays too.
    """
    assert keep >= 1, keep
    folders = [f for f in list_snapshots(root) if up_to is None or _number(f) <= up_to]
    for folder in folders[:-keep]:
        if folder.name in in_use:
            continue
        strangers = [n for n in os.listdir(folder) if n != RECORD and not FILE.fullmatch(n)]
        if strangers:
            _log.warning("old snapshot %s is kept: %s in it is no part of one", folder, strangers[0])
            continue
        _discard(folder)
    sync_folder(root)


def _number(folder: Path) -> int:
    name = FOLDER.fullmatch(folder.name)
    assert name, folder
    return int(name[1])


def _hidden(place: Path, ending: str) -> Path:
    return place.with_name(f".{place.name}.{ending}")


def _discard(folder: Path) -> None:
    """Out of its place in one step, then removed: half a snapshot must not pass for one.

    What cannot be removed now (a network disk keeps files that somebody has open) goes with the next writer.
    """
    snapshot = folder.name.removeprefix(".").split(".")[0]
    gone = folder.with_name(f".{snapshot}.{os.urandom(4).hex()}.gone")
    folder.replace(gone)
    shutil.rmtree(gone, ignore_errors=True)


def _write(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())

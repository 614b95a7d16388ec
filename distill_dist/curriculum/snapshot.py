"""Snapshots as they are read: the score of every row as of some step, a block or a few rows at a time."""

from __future__ import annotations

import hashlib
import mmap
import os
import zlib
from collections import OrderedDict
from pathlib import Path
from typing import Any, Self

import numpy as np

from distill_dist.curriculum.scores import COLUMN_TYPES, Columns
from distill_dist.curriculum.snapshot_record import (
    COLUMN_OFFSETS,
    FOLDER,
    RECORD,
    ROW_BYTES,
    Record,
    damaged,
    file_name,
    parse_record,
)

MAX_MAPS = 128  # a map holds a file descriptor, of which a process often has 1,024


def list_snapshots(root: Path) -> list[Path]:
    """The snapshots' folders in ``root``, oldest number first; none where there is no such folder."""
    if not root.is_dir():
        return []
    numbers = {}
    for folder in root.iterdir():
        name = FOLDER.fullmatch(folder.name)
        if name and not folder.is_symlink() and (folder / RECORD).is_file():
            numbers[folder] = int(name[1])
    return sorted(numbers, key=lambda folder: numbers[folder])


class Snapshot:
    """One snapshot, its files mapped when touched and their checksums verified the first time.

    The folder must stay while this is in use: see ``in_use`` of ``snapshot_writer.prune``.
    """

    def __init__(self, folder: Path, record: Record, digest: str) -> None:
        """``digest``: sha256 of snapshot.json; use :meth:`open`."""
        self.folder = folder
        self.record = record
        self.hash = digest  # pins everything in it: the record has the sha256 of every file
        self._rows = [entry.rows for entry in record.blocks]
        self.sizes = np.array(self._rows, dtype=np.int64)
        self.starts = np.concatenate([[0], np.cumsum(self.sizes)]).astype(np.int64)  # [blocks + 1]
        self._maps: OrderedDict[int, mmap.mmap | bytes] = OrderedDict()
        self._verified = {name: bytearray(len(self.sizes)) for name in ("score", "file")}

    @classmethod
    def open(cls, folder: Path) -> Self:
        """The snapshot in ``folder``, its record read and checked; UserError if it is missing or damaged."""
        path = folder / RECORD
        try:
            content = path.read_bytes()
        except OSError as error:
            raise damaged(folder, f"{path.name}: {error.strerror}") from error
        return cls(folder, parse_record(content, path), hashlib.sha256(content).hexdigest())

    @property
    def name(self) -> str:
        """`snapshot-00003`."""
        return self.folder.name

    @property
    def num_rows(self) -> int:
        """Rows of all blocks."""
        return int(self.starts[-1])

    @property
    def num_blocks(self) -> int:
        """Blocks, which is tar shards."""
        return len(self.sizes)

    def scores(self, block: int) -> np.ndarray:
        """The scores of a block, float32 [rows], read-only, of the mapped file; UserError if it is damaged."""
        return self._column(block, "score")

    def columns(self, block: int) -> Columns:
        """Everything of a block, read-only, of the mapped file; UserError if it is damaged."""
        return Columns(**{name: self._column(block, name) for name in reversed(COLUMN_TYPES)})

    def scores_at(self, rows: np.ndarray) -> np.ndarray:
        """The scores of these rows, float32 [n]."""
        return self.column_at("score", rows)

    def column_at(self, name: str, rows: np.ndarray) -> np.ndarray:
        """A column's values at these row numbers, [n]; quick where they lie in few blocks or in mapped ones."""
        numbers = np.asarray(rows, dtype=np.int64)
        found = np.empty(len(numbers), COLUMN_TYPES[name])
        if len(numbers) == 0:
            return found
        if numbers.min() < 0 or numbers.max() >= self.num_rows:
            raise IndexError(f"rows {numbers.min()} to {numbers.max()} asked of {self.num_rows}")
        order = np.argsort(numbers, kind="stable")
        in_order = numbers[order]
        blocks = np.searchsorted(self.starts, in_order, side="right") - 1
        ends = [*(np.flatnonzero(np.diff(blocks)) + 1).tolist(), len(blocks)]
        begin = 0
        for end in ends:
            block = int(blocks[begin])
            found[order[begin:end]] = self._column(block, name)[in_order[begin:end] - self.starts[block]]
            begin = end
        return found

    def verify(self) -> None:
        """Read every file and compare its sha256; UserError naming the first that differs."""
        for block in range(self.num_blocks):
            self._check(block, self._map(block), "file", force=True)

    def _column(self, block: int, name: str) -> np.ndarray:
        content = self._map(block)
        self._check(block, content, "score" if name == "score" else "file")
        rows = self._rows[block]
        return np.frombuffer(content, COLUMN_TYPES[name], rows, rows * COLUMN_OFFSETS[name])

    def _check(self, block: int, content: mmap.mmap | bytes, what: str, *, force: bool = False) -> None:
        """Only the scores where only they are asked for: a plan then reads 4 bytes a row."""
        if self._verified[what][block] and not force:
            return
        entry = self.record.blocks[block]
        if what == "score":
            good = zlib.crc32(memoryview(content)[: 4 * entry.rows]) == entry.crc32
        else:
            if isinstance(content, mmap.mmap):
                content.madvise(mmap.MADV_WILLNEED)
            good = hashlib.sha256(content).hexdigest() == entry.sha256
        if not good:
            raise damaged(self.folder, f"{file_name(block)} does not have its checksum")
        self._verified[what][block] = True
        self._verified["score"][block] = True  # the file's covers it

    def _map(self, block: int) -> mmap.mmap | bytes:
        """The file; the maps used last stay open."""
        if block in self._maps:
            self._maps.move_to_end(block)
            return self._maps[block]
        content = self._open(block)
        size = self._rows[block] * ROW_BYTES
        if len(content) != size:
            raise damaged(self.folder, f"{file_name(block)} has {len(content)} bytes instead of {size}")
        self._maps[block] = content
        if len(self._maps) > MAX_MAPS:
            self._maps.popitem(last=False)  # unmapped once no array of it is left
        return content

    def _open(self, block: int) -> mmap.mmap | bytes:
        # a plan comes here for every block in every round, and Path.open takes twice as long (9 µs)
        try:
            descriptor = os.open(f"{self.folder}/{file_name(block)}", os.O_RDONLY)
            try:
                if not self._rows[block]:  # an empty file cannot be mapped
                    return os.read(descriptor, 1)
                content = mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ)
                # the scores only: a cold disk's read-ahead would fetch all columns, 26 bytes a row instead of 4
                content.madvise(mmap.MADV_RANDOM)
                content.madvise(mmap.MADV_WILLNEED, 0, 4 * self._rows[block])
                return content
            finally:
                os.close(descriptor)
        except (OSError, ValueError) as error:
            raise damaged(self.folder, f"{file_name(block)}: {error}") from error

    def __getstate__(self) -> dict[str, Any]:
        """Without the maps: another process makes its own."""
        return {**self.__dict__, "_maps": OrderedDict()}

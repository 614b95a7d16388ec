"""The score log of `curriculum.score: served`: what the student said of each row while it trained on it.

Each process appends fixed records to a file of its own. A checkpoint counts the records that are durable; a resumed
run cuts every file there, so that no row is logged twice. Steps rise within a file.
"""

from __future__ import annotations

import os
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from distill_dist.curriculum.scores import UNKNOWN, Fresh
from distill_dist.durable import sync_folder
from distill_dist.errors import UserError

RECORD = np.dtype(
    {
        "names": ["row", "step", "position", "loss", "confidence", "teacher_loss", "predicted"],
        "formats": ["<i8", "<u4", "<u4", "<f4", "<f4", "<f4", "<u2"],
        "itemsize": 32,  # two bytes to spare: no record straddles a page
    }
)
CHUNK = 1 << 16  # records at a time when reading: 2 MiB, which stays in a cache


class ServedLog:
    """One process's file, open for appending."""

    def __init__(self, path: Path, *, length: int) -> None:
        """Cuts the file to the ``length`` records of the checkpoint; 0 starts a new one. UserError as ``cut``."""
        cut(path, length)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._last_step = int(_map(path)["step"][-1]) if length else 0
        self._file = path.open("ab")
        self._length = length
        sync_folder(path.parent)

    def append(
        self,
        step: int,
        *,
        positions: np.ndarray,
        rows: np.ndarray,
        confidence: np.ndarray,
        loss: np.ndarray,
        predicted: np.ndarray,
        teacher_loss: np.ndarray | None = None,
    ) -> None:
        """Log rows [n] of ``step``, each at its place in the global batch. Durable after ``sync`` only."""
        assert step >= self._last_step, (step, self._last_step)
        records = np.zeros(len(rows), RECORD)
        records["step"] = step
        records["position"] = positions
        records["row"] = rows
        records["confidence"] = confidence
        records["loss"] = loss
        records["predicted"] = predicted
        records["teacher_loss"] = np.nan if teacher_loss is None else teacher_loss
        self._file.write(records.tobytes())
        self._last_step = step
        self._length += len(records)

    def sync(self) -> int:
        """Make everything appended durable; the file's length in records, for the checkpoint."""
        self._file.flush()
        os.fsync(self._file.fileno())
        return self._length

    def close(self) -> None:
        """Flush and close; what was not synced may be lost with the machine."""
        self._file.close()


def cut(path: Path, length: int) -> None:
    """Shorten the file to ``length`` records, durably; UserError if it has fewer. A missing one has 0."""
    size = path.stat().st_size if path.exists() else 0
    if size < length * RECORD.itemsize:
        raise UserError(
            f"score log {path} has {size // RECORD.itemsize} records, the checkpoint counts {length}: "
            "put a copy of the file in its place, or start again in another run_dir"
        )
    if size > length * RECORD.itemsize:
        with path.open("rb+") as file:
            file.truncate(length * RECORD.itemsize)
            os.fsync(file.fileno())


@dataclass(frozen=True)
class Latest:
    """The last that was logged of each of n rows in a row; where ``seen`` is False, nothing was."""

    seen: np.ndarray  # bool
    confidence: np.ndarray  # float32, NaN where not seen; so are the losses
    loss: np.ndarray  # float32
    teacher_loss: np.ndarray  # float32
    predicted: np.ndarray  # uint16, UNKNOWN where not seen

    def fresh(self, begin: int, labels: np.ndarray) -> Fresh:
        """What it says of the block whose first row is at ``begin`` here; ``labels`` [rows] are its classes."""
        part = slice(begin, begin + len(labels))
        return Fresh(
            confidence=self.confidence[part],
            loss=self.loss[part],
            predicted=self.predicted[part],
            labels=labels,
            seen=self.seen[part],
            teacher_loss=self.teacher_loss[part],
        )


def latest(paths: Sequence[Path], from_step: int, to_step: int, *, first_row: int, num_rows: int) -> Latest:
    """What steps [from_step, to_step) said last of rows [first_row, first_row + num_rows), by (step, position).

    The same for any number of files that share the records out. Takes 23 bytes a row, and reads the steps' records
    once, whatever the rows.
    """
    when = np.zeros(num_rows, np.uint64)  # 0: never; else 1 + (step, position) as one number
    found = Latest(
        seen=np.zeros(num_rows, bool),
        confidence=np.full(num_rows, np.nan, np.float32),
        loss=np.full(num_rows, np.nan, np.float32),
        teacher_loss=np.full(num_rows, np.nan, np.float32),
        predicted=np.full(num_rows, UNKNOWN, np.uint16),
    )
    for path in paths:
        records = _map(path)
        # bisection reads a few records; numpy's would convert them all to the type of the sought
        begin, end = (bisect_left(records["step"], step) for step in (from_step, to_step))
        for start in range(begin, end, CHUNK):
            chunk = np.array(records[start : min(start + CHUNK, end)])
            _take(
                chunk[(chunk["row"] >= first_row) & (chunk["row"] < first_row + num_rows)],
                first_row,
                when,
                found,
            )
    return found


def _take(records: np.ndarray, first_row: int, when: np.ndarray, found: Latest) -> None:
    """Fill in the records that are later than what is there. ``when`` and ``found`` are written to."""
    time = (records["step"].astype(np.uint64) << np.uint64(32)) + records["position"] + np.uint64(1)
    order = np.argsort(time)  # of two values for one element, numpy keeps the last
    places = records["row"][order] - first_row
    later = time[order] > when[places]
    places, records = places[later], records[order[later]]
    when[places] = time[order[later]]
    found.seen[places] = True
    for name in ("confidence", "loss", "teacher_loss", "predicted"):
        getattr(found, name)[places] = records[name]


def _map(path: Path) -> np.ndarray:
    """The whole records of a file, mapped; none where there is no file. A torn one at the end is left out."""
    length = path.stat().st_size // RECORD.itemsize if path.exists() else 0
    if length == 0:  # an empty file cannot be mapped
        return np.zeros(0, RECORD)
    return np.memmap(path, RECORD, mode="r", shape=(length,))

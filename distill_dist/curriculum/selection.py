"""Exact order statistics of all rows of all processes, without a sort: integer histograms, summed digit by digit."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from distill_dist.curriculum.keys import ABOVE_ALL
from distill_dist.curriculum.levels import Blocks, Digit, Levels, Part, Table, cut_chunks

# Sums an int64 array over the processes; it may change the array that it is given.
Reduce = Callable[[np.ndarray], np.ndarray]

# Once so few rows are left in question they are kept (12 bytes each) and the blocks are not read again. Of 1e8
# uniform scores, 200 thresholds leave 3.3e6 after the first digit.
KEEP_ROWS = 1 << 22


def alone(counts: np.ndarray) -> np.ndarray:
    """The ``Reduce`` of a single process."""
    return counts


def select(blocks: Blocks, ranks: Sequence[int], *, seed: int, reduce: Reduce = alone) -> Levels:
    """Thresholds with exactly ``ranks[e]`` rows of all processes below the e-th, in the order of (key, hash).

    ``ranks`` ascend. Rank 0 is (0, 0), which lies below every row; N and more is (``ABOVE_ALL``, 0), above every
    row. Any other has the leading bits of the row of that rank (counted from 0), as many as set it apart from
    the rows before it, then zeros. ``blocks`` gives this process's rows, each once over all processes. ``reduce``
    is called equally often and with equal shapes in every process.
    """
    wanted = np.array(ranks, np.int64).reshape(-1)
    assert (np.diff(wanted, prepend=0) >= 0).all(), "ranks ascend from 0"
    scores, hashes = np.zeros(len(wanted), np.uint32), np.zeros(len(wanted), np.uint64)
    live = np.flatnonzero(wanted)  # thresholds that more bits are needed for
    nodes = np.zeros(len(live), np.int64)
    tables: list[Table] = []
    digit = Digit.at(0, 1)
    left = None  # this process's rows still in question
    while len(live):
        assert digit.width, "a row came twice"
        counts, blocks = _count(blocks, tables, digit, int(nodes[-1]) + 1, seed, left)
        mine = counts.copy()
        counts = reduce(counts)
        if not tables:
            inside = wanted[live] < counts.sum()
            scores[live[~inside]] = ABOVE_ALL
            live, nodes = live[inside], nodes[inside]
        starts = nodes * digit.stride
        slots, wanted[live] = _find_ranks(counts, starts, wanted[live])
        words = hashes if digit.of_hash else scores
        words[live] |= ((slots - starts) << digit.shift).astype(words.dtype)
        # where no row of the slot lies before it, the slot's lower edge parts the rows as well as the row itself
        deeper = wanted[live] > 0
        live, slots = live[deeper], slots[deeper]
        cut, nodes = np.unique(slots, return_inverse=True)
        tables.append(_cut_table(digit, len(counts), cut))
        left = int(mine[cut].sum())
        digit = Digit.at(digit.end, len(cut))
    return Levels(scores, hashes, seed)


def _find_ranks(counts: np.ndarray, starts: np.ndarray, ranks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The slots of the rows that have ``ranks`` from slots ``starts`` on, and their ranks within these slots."""
    ends = np.cumsum(counts)
    before = ends - counts
    wanted = before[starts] + ranks
    slots = np.searchsorted(ends, wanted, side="right")
    return slots, wanted - before[slots]


def _cut_table(digit: Digit, size: int, cut: np.ndarray) -> Table:
    """Sends the slots ``cut`` on to nodes 0, 1, …; rows anywhere else are no longer in question."""
    entries = np.zeros(size, np.int32)
    entries[cut] = ~np.arange(len(cut), dtype=np.int32)
    return Table(digit, entries)


def _count(
    blocks: Blocks, tables: Sequence[Table], digit: Digit, num_nodes: int, seed: int, left: int | None
) -> tuple[np.ndarray, Blocks]:
    """Rows still in question per slot of ``digit`` (int64), and the blocks to read next: those rows if few.

    ``left`` is their number, None where all are.
    """
    counts = np.zeros(num_nodes * digit.stride, np.int64)
    kept = _Kept(left) if left is not None and left <= KEEP_ROWS else None
    for rows, keys in blocks():
        for _, part in cut_chunks(rows, keys, seed):
            for table in tables:
                part = table.find(part)[1]
            # unlike bincount it makes no table per call, and it is as fast
            np.add.at(counts, digit.slots(part), 1)
            if kept:
                kept.add(part)
    return counts, kept.blocks if kept else blocks


class _Kept:
    """Rows still in question, as one block."""

    def __init__(self, left: int) -> None:
        self._size = 0
        self._rows, self._keys = np.empty(left, np.int64), np.empty(left, np.uint32)

    def add(self, part: Part) -> None:
        end = self._size + len(part.keys)
        self._rows[self._size : end] = part.each_row
        self._keys[self._size : end] = part.keys
        self._size = end

    def blocks(self) -> list[tuple[np.ndarray, np.ndarray]]:
        return [(self._rows, self._keys)]

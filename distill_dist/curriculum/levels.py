"""The level of a row: how many thresholds lie at or below its (key, hash); 3 ns a row, 15 where all rows tie.

A threshold has 96 bits: 32 of the key (keys.py), then 64 of the hash that breaks ties. Tables look at a digit of
them at a time. An entry is a level or, where a threshold falls inside the entry's range, a node of the next table:
the first table decides most rows, and hashes are computed only for rows that tie with a threshold.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from distill_dist.curriculum.keys import row_hashes

# The first of consecutive rows, or each row (int64 [n]).
Rows = int | np.ndarray
# Iterates anew at every call: (rows, keys uint32 [n]) per block.
Blocks = Callable[[], Iterable[tuple[Rows, np.ndarray]]]

KEY_BITS = 32
ALL_BITS = 96
# 2**20 entries of int32 are 4 MiB. 11 bits of mantissa: 200 thresholds cut 3 % of uniform rows' entries.
TABLE_BITS = 20
# Hashes are even: a table that stays in the L2 cache leaves few rows as well. 5 ns a row less than with 20 bits.
HASH_TABLE_BITS = 16
LEAST_BITS = 4  # for tens of thousands of thresholds, which need no speed but must end
# Rows per pass: intermediate arrays stay in the L2 cache, and glibc's malloc does not give their pages back to
# the system each time, which cost 10 ns a row at 1 << 15.
CHUNK = 1 << 14
# Unused entries behind each node's: with a power of two from node to node, the entries of rows that all have the
# same digit (integer scores) fall into one set of the cache; counting them took 9 ns a row instead of 1.5.
PAD = 16
FEW = 512  # rows up to which a binary search costs less than the calls that go through the tables


@dataclass(frozen=True)
class Digit:
    """Bits [start, start + width) of the 96, counted from the most significant; never of key and hash both."""

    start: int
    width: int

    @classmethod
    def at(cls, start: int, num_nodes: int) -> Digit:
        """The widest digit from ``start`` on that ``num_nodes`` leave room for in a table."""
        end, bits = (KEY_BITS, TABLE_BITS) if start < KEY_BITS else (ALL_BITS, HASH_TABLE_BITS)
        return cls(start, min(end - start, max(LEAST_BITS, bits - (num_nodes - 1).bit_length())))

    @property
    def end(self) -> int:
        """The bit behind it."""
        return self.start + self.width

    @property
    def of_hash(self) -> bool:
        """Whether the bits are the hash's."""
        return self.start >= KEY_BITS

    @property
    def shift(self) -> int:
        """Less significant bits of the same word."""
        return (ALL_BITS if self.of_hash else KEY_BITS) - self.end

    @property
    def stride(self) -> int:
        """Entries of a table from node to node."""
        return (1 << self.width) + PAD

    def slots(self, part: Part) -> np.ndarray:
        """Entries (intp [n]) of the table that ``part`` goes to, in the order of (key, hash)."""
        word = part.hashes if self.of_hash else part.keys
        slots = (word >> word.dtype.type(self.shift)).astype(np.intp)
        if self.start not in (0, KEY_BITS):
            slots &= (1 << self.width) - 1
        if part.nodes is not None:
            slots += np.multiply(part.nodes, self.stride, dtype=np.intp)
        return slots

    def is_rest_zero(self, part: Part) -> np.ndarray:
        """Whether no bit behind the digit is set, bool [n]."""
        below = (1 << self.shift) - 1
        if self.of_hash:
            return (part.hashes & np.uint64(below)) == 0
        return ((part.keys & np.uint32(below)) == 0) & (part.hashes == 0)


@dataclass
class Part:
    """Rows of one chunk that go equally many tables deep.

    ``places`` [n] within the chunk (None: all of it), ``nodes`` [n] of the next table (None: it has one).
    """

    keys: np.ndarray
    rows: Rows
    seed: int
    places: np.ndarray | None = None
    nodes: np.ndarray | None = None
    known_hashes: np.ndarray | None = None

    @property
    def hashes(self) -> np.ndarray:
        """Hash of each row, uint64 [n]; made when first asked for."""
        if self.known_hashes is None:
            self.known_hashes = row_hashes(self.each_row, self.seed)
        return self.known_hashes

    @property
    def each_row(self) -> np.ndarray:
        """Rows one by one, int64 [n]."""
        if isinstance(self.rows, np.ndarray):
            return self.rows
        return np.arange(self.rows, self.rows + len(self.keys))

    def keep(self, chosen: np.ndarray, nodes: np.ndarray | None = None) -> Part:
        """Those at ``chosen`` (indices), at ``nodes`` of the next table."""
        # take is a third faster than an index
        return Part(
            keys=self.keys.take(chosen),
            rows=self.rows.take(chosen) if isinstance(self.rows, np.ndarray) else self.rows + chosen,
            seed=self.seed,
            places=chosen if self.places is None else self.places.take(chosen),
            nodes=nodes,
            known_hashes=None if self.known_hashes is None else self.known_hashes.take(chosen),
        )


@dataclass(frozen=True)
class Table:
    """One table: ``entries`` (int32 [nodes · stride]) are what is found, or ~node of the next table."""

    digit: Digit
    entries: np.ndarray

    def find(self, part: Part) -> tuple[np.ndarray, Part]:
        """What each row finds (int32 [n]), and the rows that go on to the next table."""
        # every slot is inside; "wrap" is numpy's fastest mode
        found = self.entries.take(self.digit.slots(part), mode="wrap")
        cut = found < 0
        if np.count_nonzero(cut) == len(cut):  # as with integer scores
            return found, replace(part, nodes=~found)
        chosen = np.flatnonzero(cut)
        return found, part.keep(chosen, ~found.take(chosen))


@dataclass(frozen=True, eq=False)
class Levels:
    """Thresholds (``scores`` uint32 [m], ``hashes`` uint64 [m]), ascending; equal ones leave a level empty.

    ``seed`` is that of the rows' hashes.
    """

    scores: np.ndarray
    hashes: np.ndarray
    seed: int

    def __post_init__(self) -> None:
        """Checks that they ascend."""
        assert self.scores.dtype == np.uint32, self.scores.dtype
        assert self.hashes.dtype == np.uint64, self.hashes.dtype
        assert len(self.scores) == len(self.hashes)
        rises = self.scores[1:] > self.scores[:-1]
        ties = (self.scores[1:] == self.scores[:-1]) & (self.hashes[1:] >= self.hashes[:-1])
        assert (rises | ties).all(), "thresholds ascend"

    def of(self, keys: np.ndarray, rows: Rows) -> np.ndarray:
        """Level of each row (int32 [n], 0 to m): the number of thresholds at or below its (key, hash)."""
        if len(keys) <= FEW:
            return self._search(keys, rows)
        levels = np.empty(len(keys), np.int32)
        for start, part in cut_chunks(rows, keys, self.seed):
            levels[start : start + CHUNK] = self._find(part)
        return levels

    def _find(self, part: Part) -> np.ndarray:
        levels, part = self.tables[0].find(part)
        for table in self.tables[1:]:
            if not len(part.keys):
                break
            found, further = table.find(part)
            levels[... if part.places is None else part.places] = found
            part = further
        return levels

    def _search(self, keys: np.ndarray, rows: Rows) -> np.ndarray:
        low = np.searchsorted(self.scores, keys, side="left")
        high = np.searchsorted(self.scores, keys, side="right")
        tied = np.flatnonzero(low < high)
        tied = tied[self.hashes[high[tied] - 1] > 0]  # thresholds without a hash lie below all of their key
        hashes = Part(keys, rows, self.seed).keep(tied).hashes if len(tied) else None
        while len(tied) and hashes is not None:
            middle = (low[tied] + high[tied]) // 2
            reached = self.hashes[middle] <= hashes
            low[tied[reached]] = middle[reached] + 1
            high[tied[~reached]] = middle[~reached]
            still = low[tied] < high[tied]
            tied, hashes = tied[still], hashes[still]
        return high.astype(np.int32)

    @cached_property
    def tables(self) -> list[Table]:
        """Made at the first need, in about 20 ms; 4 MiB each at most, and few are needed."""
        at_zero = int(np.count_nonzero((self.scores == 0) & (self.hashes == 0)))
        part = Part(self.scores[at_zero:], 0, self.seed, known_hashes=self.hashes[at_zero:])
        first = np.array([at_zero])  # level at the lower edge of each node
        digit, tables = Digit.at(0, 1), []
        while True:
            table, part, first = _cut_table(digit, part, first)
            tables.append(table)
            if not len(part.keys):
                return tables
            digit = Digit.at(digit.end, len(first))


def _cut_table(digit: Digit, part: Part, first: np.ndarray) -> tuple[Table, Part, np.ndarray]:
    """The table of the thresholds ``part`` (as if they were rows), over nodes that begin at levels ``first``.

    Then the thresholds that fall inside an entry's range, and the levels at which the ranges so cut begin.
    """
    slots, on_edge = digit.slots(part), digit.is_rest_zero(part)
    size = len(first) * digit.stride
    there = np.bincount(slots, minlength=size)
    before = np.cumsum(there) - there
    entries = before + np.bincount(slots[on_edge], minlength=size)
    entries += np.repeat(first - before[:: digit.stride], digit.stride)
    inside = np.flatnonzero(~on_edge)
    cut, nodes = np.unique(slots[inside], return_inverse=True)
    first = entries[cut]
    entries[cut] = ~np.arange(len(cut))
    return Table(digit, entries.astype(np.int32)), part.keep(inside, nodes), first


def cut_chunks(rows: Rows, keys: np.ndarray, seed: int) -> Iterator[tuple[int, Part]]:
    """The rows in pieces of CHUNK at most, each with its place among them."""
    for start in range(0, len(keys), CHUNK):
        piece = rows[start : start + CHUNK] if isinstance(rows, np.ndarray) else rows + start
        yield start, Part(keys[start : start + CHUNK], piece, seed)


def count_levels(levels: Levels, blocks: Blocks) -> np.ndarray:
    """Rows of each level in each block, int64 [blocks, m + 1]."""
    num_levels = len(levels.scores) + 1
    counts = [np.bincount(levels.of(keys, rows), minlength=num_levels) for rows, keys in blocks()]
    return np.array(counts, np.int64).reshape(len(counts), num_levels)

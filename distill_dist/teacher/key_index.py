"""Where each key lies among many segments: 28 bytes a key, whatever the number of segments."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

import numpy as np

from distill_dist.teacher.segment import KEY, SegmentIndex


@dataclass(frozen=True)
class Places:
    """Where n keys lie; sorted by key and without repeats in an index, in any order in an answer."""

    keys: np.ndarray  # segment.KEY
    segments: np.ndarray  # uint32, the segment's number
    offsets: np.ndarray  # uint32, as in SegmentIndex; so are the lengths
    lengths: np.ndarray  # uint32

    @classmethod
    def of(cls, index: SegmentIndex, number: int) -> Self:
        """Those of one segment; of a key that repeats, the first."""
        segments = np.full(len(index.keys), number, np.uint32)
        return cls(index.keys, segments, index.offsets, index.lengths).take(_first(index.keys))

    def take(self, which: np.ndarray) -> Self:
        """Those places, copied; ``which``: a mask or indices."""
        return type(self)(self.keys[which], self.segments[which], self.offsets[which], self.lengths[which])


class KeyIndex:
    """Immutable, so that threads read without a lock while another makes the next one.

    Sorted tables, newest first, each less than half as large as the one behind it: one more segment costs a
    merge with the tables of its own size, about log2(n) copies of a key in all, and a search looks at
    log2(n) tables at most.
    """

    def __init__(self, tables: tuple[Places, ...] = ()) -> None:
        """Use ``added`` to make one."""
        self._tables = tables

    def __len__(self) -> int:
        """Keys, those counted twice that lie in two tables."""
        return sum(len(table.keys) for table in self._tables)

    @property
    def bytes(self) -> int:
        """Bytes of memory."""
        return sum(
            column.nbytes
            for table in self._tables
            for column in (table.keys, table.segments, table.offsets, table.lengths)
        )

    def added(self, places: Places) -> KeyIndex:
        """With those of a newer segment, which win over the same keys of older ones."""
        tables = list(self._tables)
        while tables and 2 * len(places.keys) >= len(tables[0].keys):
            places = _merged(places, tables.pop(0))
        return KeyIndex((places, *tables))

    def without(self, is_gone: Callable[[np.ndarray], np.ndarray]) -> KeyIndex:
        """Without the keys of segments that are gone; ``is_gone`` tells numbers to a mask."""
        kept = [table.take(~is_gone(table.segments)) for table in self._tables]
        return KeyIndex(tuple(table for table in kept if len(table.keys)))

    def find(self, keys: np.ndarray) -> tuple[np.ndarray, Places]:
        """Indices into ``keys`` [n] of those that are here, and the newest place of each."""
        missing = np.arange(len(keys))
        found, places = [], []
        for table in self._tables:
            sought = keys[missing]
            at = np.minimum(np.searchsorted(table.keys, sought), len(table.keys) - 1)
            here = table.keys[at] == sought
            found.append(missing[here])
            places.append(table.take(at[here]))
            missing = missing[~here]
        if not found:
            return np.zeros(0, np.intp), _none()
        return np.concatenate(found), _concatenated(places)


def _merged(newer: Places, older: Places) -> Places:
    """A column at a time: that takes some 95 bytes a key for the moment, and not 140."""
    keys = np.concatenate([newer.keys, older.keys])
    # for strings numpy's stable sort is timsort, which merges two sorted runs in one pass
    order = np.argsort(keys, kind="stable")
    keys = keys[order]
    kept = _first(keys)
    order = order[kept]
    return Places(
        keys=keys[kept],
        segments=np.concatenate([newer.segments, older.segments])[order],
        offsets=np.concatenate([newer.offsets, older.offsets])[order],
        lengths=np.concatenate([newer.lengths, older.lengths])[order],
    )


def _first(keys: np.ndarray) -> np.ndarray:
    """Mask of sorted keys: the first of each run of equal ones."""
    return np.concatenate([[True], keys[1:] != keys[:-1]])


def _concatenated(places: list[Places]) -> Places:
    return Places(
        keys=np.concatenate([one.keys for one in places]),
        segments=np.concatenate([one.segments for one in places]),
        offsets=np.concatenate([one.offsets for one in places]),
        lengths=np.concatenate([one.lengths for one in places]),
    )


def _none() -> Places:
    return Places(np.zeros(0, KEY), *(np.zeros(0, np.uint32) for _ in range(3)))

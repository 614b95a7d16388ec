"""The rows of each shard sorted by class of difficulty, made when a shard is touched, in bounded memory."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np


class BlockOrders:
    """Place among a block's rows in class order -> place in the block; 2 bytes a row of the blocks it holds.

    ``classes_of(block)`` [rows of the block] is asked again whenever a block comes back that had to leave.
    """

    def __init__(
        self, sizes: np.ndarray, classes_of: Callable[[int], np.ndarray], *, memory_bytes: int
    ) -> None:
        """``sizes`` [blocks] are rows per block; at least one block is held, whatever ``memory_bytes``."""
        largest = int(sizes.max())
        dtype = np.dtype(np.uint16 if largest <= 1 << 16 else np.uint32)
        self._classes_of = classes_of
        self._slots = int(min(len(sizes), max(1, memory_bytes // (largest * dtype.itemsize))))
        # pages that no block has filled yet cost nothing: the system hands them out when they are written
        self._arena = np.empty((self._slots, largest), dtype)
        self._slot_of = np.full(len(sizes), -1, np.int64)
        self._held = np.full(self._slots, -1, np.int64)  # slot -> block
        self._next = 0  # slots are taken in turn: the block that came first leaves first
        self._missing = len(sizes)

    def places(self, blocks: np.ndarray, ranks: np.ndarray) -> np.ndarray:
        """Places (int64) within their blocks of the rows that stand at ``ranks`` in class order."""
        if self._missing:
            touched = np.zeros(len(self._slot_of), bool)
            touched[blocks] = True
            needed = np.flatnonzero(touched)
            if len(needed) > self._slots:
                return self._in_turns(blocks, ranks, needed)
            self._fetch(needed)
        return self._arena[self._slot_of[blocks], ranks].astype(np.int64)

    def _in_turns(self, blocks: np.ndarray, ranks: np.ndarray, needed: np.ndarray) -> np.ndarray:
        found = np.empty(len(blocks), np.int64)
        for start in range(0, len(needed), self._slots):
            some = needed[start : start + self._slots]
            chosen = np.flatnonzero((blocks >= some[0]) & (blocks <= some[-1]))
            found[chosen] = self.places(blocks[chosen], ranks[chosen])
        return found

    def _fetch(self, needed: np.ndarray) -> None:
        slots = self._slot_of[needed]
        kept = set(slots[slots >= 0].tolist())
        for block in needed[slots < 0].tolist():
            while self._next in kept:
                self._next = (self._next + 1) % self._slots
            self._put(block, self._next)
            self._next = (self._next + 1) % self._slots

    def _put(self, block: int, slot: int) -> None:
        if self._held[slot] >= 0:
            self._slot_of[self._held[slot]] = -1
            self._missing += 1
        classes = self._classes_of(block)
        # numpy sorts 16-bit integers by radix: 0.3 ms for 65,536
        self._arena[slot, : len(classes)] = np.argsort(classes.astype(np.uint16), kind="stable")
        self._held[slot], self._slot_of[block] = block, slot
        self._missing -= 1

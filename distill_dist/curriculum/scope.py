"""Positions -> rows of some shards together: all of them, or a window of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from distill_dist.curriculum.block_orders import BlockOrders
from distill_dist.curriculum.order import permute_each
from distill_dist.curriculum.segments import Segment, Strata, draws_per_class, positions_by_segment


class Scope:
    """Looks rows up in constant time: 12 bytes per (shard, class), nothing per row."""

    def __init__(
        self,
        blocks: np.ndarray,
        starts: np.ndarray,
        counts: np.ndarray,
        segments: Sequence[Segment],
        strata: Strata,
        *,
        seed: int,
        epoch: int,
    ) -> None:
        """``blocks`` [b] with their first rows ``starts`` [b] and rows per class ``counts`` [b, classes]."""
        self._blocks, self._block_starts, self._segments, self._strata = blocks, starts, segments, strata
        self._seed, self._epoch = seed, epoch
        self._rows = counts.sum(axis=0, dtype=np.int64)
        # Rows in the order (class, block), as they are numbered inside a class; where each (class, block) ends.
        self._ends = np.cumsum(counts.T.reshape(-1), dtype=np.int64)
        # Rows of a block in the order of classes, as BlockOrders has them; where each class begins.
        ahead = np.cumsum(counts, axis=1, dtype=np.int64) - counts
        self._ahead = ahead.T.astype(np.uint32).reshape(-1)
        self._class_starts = np.cumsum(self._rows) - self._rows

    def draws(self) -> np.ndarray:
        """How often each class is drawn, int64 [classes]."""
        return draws_per_class(self._segments) if self._segments else np.zeros(len(self._rows), np.int64)

    def rows_at(self, positions: np.ndarray, orders: BlockOrders) -> np.ndarray:
        """Rows (int64) at ``positions`` (int64 [n]) of the epoch, which lie in this scope."""
        classes, draws = np.empty(len(positions), np.int64), np.empty(len(positions), np.int64)
        for segment, chosen in positions_by_segment(self._segments, positions):
            repeat, within = np.divmod(positions[chosen] - segment.start, segment.length)
            place = self._strata.places(within, segment.length)
            of = np.searchsorted(segment.bounds, place, side="right") - 1
            classes[chosen] = of
            each = segment.bounds[of + 1] - segment.bounds[of]
            draws[chosen] = segment.served[of] + repeat * each + place - segment.bounds[of]
        return self._rows_of(classes, draws, orders)

    def _rows_of(self, classes: np.ndarray, draws: np.ndarray, orders: BlockOrders) -> np.ndarray:
        """The rows that the ``draws``-th draws of ``classes`` give: a new permutation of the class per pass."""
        passes, nth = np.divmod(draws, self._rows[classes])
        nth = permute_each(nth, classes, self._rows, passes, seed=self._seed, epoch=self._epoch)
        numbered = self._class_starts[classes] + nth
        cell = np.searchsorted(self._ends, numbered, side="right")
        before = np.where(cell > 0, self._ends[cell - 1], 0)
        block = cell % len(self._blocks)
        place = orders.places(self._blocks[block], self._ahead[cell] + numbered - before)
        found: np.ndarray = self._block_starts[block] + place
        return found

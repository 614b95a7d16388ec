"""Which rows form global batch t of an epoch: the plan's order, grouped by length inside windows.

Random batches of short texts are two thirds padding. Inside a window of some global batches the rows are
sorted by length and cut into batches, and the batches are then shuffled, so that no trend of lengths is left.
Everything is a pure function of (lengths, order, seed, epoch, step): resuming needs no random state.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

# (epoch, positions int64 [P]) -> rows int64 [P]: the plan's order. Position p is the p-th row of the epoch.
RowsAt = Callable[[int, np.ndarray], np.ndarray]


def num_steps(num_rows: int, batch_size: int) -> int:
    """Global batches of an epoch: the last rows form a smaller one, none are dropped."""
    return -(-num_rows // batch_size)


def window_batches(
    rows: np.ndarray, lengths: np.ndarray, *, batch_size: int, seed: int, epoch: int, index: int
) -> list[np.ndarray]:
    """The global batches (rows int64) of window ``index`` of the epoch, in the order of their steps.

    ``rows`` [R] are the window's rows in plan order, ``lengths`` [R] their lengths in tokens. Every batch
    has ``batch_size`` rows, except one if ``batch_size`` does not divide R. Equal lengths are ordered by a
    seeded hash: an order by row or by plan position would put neighbours together every epoch.
    """
    num_batches = num_steps(len(rows), batch_size)
    hashes = _hashes(len(rows) + num_batches + 1, seed=seed, epoch=epoch, index=index)
    by_length = np.lexsort((hashes[: len(rows)], lengths))
    sizes = [batch_size] * num_batches
    # the smaller batch may hold any length: its rows weigh more in their step's mean
    sizes[int(hashes[-1] % np.uint64(num_batches))] -= num_batches * batch_size - len(rows)
    batches = np.split(rows[by_length], np.cumsum(sizes)[:-1])
    shuffled = np.argsort(hashes[len(rows) : -1], kind="stable")
    return [batches[position] for position in shuffled]


def _hashes(count: int, *, seed: int, epoch: int, index: int) -> np.ndarray:
    """``count`` uint64 hashes keyed by all arguments.

    Philox is counter-based and its raw stream, unlike Generator's methods, never changes between versions.
    """
    assert 0 <= epoch < 1 << 32, epoch
    assert 0 <= index < 1 << 32, index
    key = np.array([seed % (1 << 64), epoch << 32 | index], dtype=np.uint64)
    return np.random.Philox(key=key).random_raw(count)


class EpochPlan:
    """Global batches of one epoch by step, in any order of asking. Keeps the last window it cut (~20 kB)."""

    def __init__(
        self,
        *,
        lengths: np.ndarray,
        num_rows: int,
        batch_size: int,
        window: int,
        rows_at: RowsAt,
        seed: int,
        epoch: int,
    ) -> None:
        """``lengths`` [rows of the split] are in tokens, ``num_rows`` are the plan's positions per epoch,
        ``window`` is in global batches (1 keeps the plan's order)."""
        assert num_rows >= 1, num_rows
        assert batch_size >= 1, batch_size
        assert window >= 1, window
        self.lengths = lengths
        self.num_rows = num_rows
        self.batch_size = batch_size
        self.window = window
        self.rows_at = rows_at
        self.seed = seed
        self.epoch = epoch
        self._cached: tuple[int, list[np.ndarray]] = (-1, [])

    def global_batch(self, step: int) -> np.ndarray:
        """Rows (int64 [G], G ≤ batch_size) of step ``step`` of the epoch; the same on every rank."""
        assert 0 <= step < num_steps(self.num_rows, self.batch_size), step
        index = step // self.window
        if self._cached[0] != index:
            self._cached = (index, self._cut(index))
        return self._cached[1][step - index * self.window]

    def _cut(self, index: int) -> list[np.ndarray]:
        size = self.window * self.batch_size
        positions = np.arange(index * size, min((index + 1) * size, self.num_rows), dtype=np.int64)
        rows = self.rows_at(self.epoch, positions)
        if self.window == 1:
            return [rows]
        return window_batches(
            rows,
            self.lengths[rows],
            batch_size=self.batch_size,
            seed=self.seed,
            epoch=self.epoch,
            index=index,
        )

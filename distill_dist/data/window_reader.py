"""Rows of a prepared split from slow disks and object stores: window by window, every shard whole and once an epoch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from distill_dist.data.shards import Example, PreparedSplit
from distill_dist.data.window_fetcher import FetchCounts, WindowFetcher

# No byte of a shard for so long, while rows of it are waited for: the store is lost. Stores throttle for minutes.
FETCH_DEADLINE_S = 600.0


class WindowedSplit:
    """Reads as :class:`PreparedSplit` does, but rows of the epoch's windows only, in the order of the windows.

    The first row asked of a window moves on to it. The window before stays, because batches straddle; what lies
    before that is dropped; the next one is fetched meanwhile. In memory are the raw tokens of three windows at most,
    of two once ``release`` was called.
    """

    def __init__(self, split: PreparedSplit, *, deadline_s: float = FETCH_DEADLINE_S) -> None:
        """``deadline_s``: longest wait in ``read`` without a byte of the shard it waits for."""
        self._split = split
        self._deadline_s = deadline_s
        self._starts = np.cumsum(split.block_sizes) - split.block_sizes
        self._counts = FetchCounts()
        self._fetcher: WindowFetcher | None = None
        self.lengths = split.lengths
        self.labels = split.labels
        self.clean_labels = split.clean_labels
        self.difficulties = split.difficulties
        self.sources = split.sources
        self.block_sizes = split.block_sizes
        self.block_bytes = split.block_bytes

    @property
    def num_rows(self) -> int:
        """Rows of the split."""
        return self._split.num_rows

    @property
    def fetches(self) -> int:
        """Shards fetched so far, over all epochs."""
        return self._counts.shards

    @property
    def bytes_fetched(self) -> int:
        """Bytes of tars read so far."""
        return self._counts.bytes

    @property
    def waited_s(self) -> float:
        """Seconds that ``read`` has waited for shards so far."""
        return self._counts.waited_s

    def begin_epoch(
        self, windows: Sequence[tuple[int, ...]], *, start_window: int = 0, reach: int = 1
    ) -> None:
        """Drops all and begins to fetch: ``windows`` are shard numbers in the order they are trained.

        ``start_window`` is the first whose rows will be asked for, in a run that resumes in mid-epoch. Rows may be
        asked for up to ``reach`` windows behind the newest one: as many as a batch, or a length window, goes over.
        """
        self.close()
        self._fetcher = WindowFetcher(
            self._split,
            windows,
            start=start_window,
            deadline_s=self._deadline_s,
            counts=self._counts,
            reach=reach,
        )

    def read(self, rows: np.ndarray) -> list[Example]:
        """The rows with these numbers, in this order: of one window or of two neighbours.

        UserError naming the shard that cannot be fetched or is damaged. Rows of windows that were dropped are a bug of
        the caller.
        """
        numbers, shards = self._split.locate(rows)
        if not len(numbers):
            return []
        assert self._fetcher is not None, "begin_epoch comes first"
        held = self._fetcher.take(np.unique(shards).tolist())
        places = (numbers - self._starts[shards]).tolist()
        found = []
        labels = self.labels[numbers].tolist()
        for row, shard, place, label in zip(numbers.tolist(), shards.tolist(), places, labels, strict=True):
            raw = held[shard].row(place, streams=self._split.streams)
            found.append(self._split.decode(row, shard, raw, label))
        return found

    def release(self, window: int) -> None:
        """Drops the windows before number ``window``: no row of them will be asked for any more in this epoch."""
        assert self._fetcher is not None, "begin_epoch comes first"
        self._fetcher.release(window)

    def close(self) -> None:
        """Drops all and ends the thread; another epoch may begin afterwards."""
        if self._fetcher is not None:
            self._fetcher.close()
            self._fetcher = None

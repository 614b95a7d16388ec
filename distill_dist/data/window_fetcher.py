"""The shards of an epoch's windows, fetched in their order by a thread, one window ahead of the one in use."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from distill_dist.data.shard_fetch import FetchedShard, fetch_shard
from distill_dist.data.shards import PreparedSplit
from distill_dist.errors import UserError

POLL_S = 1.0  # between two looks at the progress of a fetch that somebody waits for
CLOSE_S = 10.0  # for the thread's end; it looks up at every chunk that it reads

_log = logging.getLogger(__name__)


@dataclass
class FetchCounts:
    """What fetching has cost so far, over all epochs."""

    shards: int = 0
    bytes: int = 0
    waited_s: float = 0.0  # inside of `take`


class _Stopped(Exception):
    """Ends a fetch that nobody wants any more."""


class WindowFetcher:
    """One epoch. ``take`` gives shards and thereby moves on; what lies over ``reach`` windows behind is dropped."""

    def __init__(
        self,
        split: PreparedSplit,
        windows: Sequence[Sequence[int]],
        *,
        start: int,
        deadline_s: float,
        counts: FetchCounts,
        reach: int = 1,
    ) -> None:
        """Fetches windows ``start`` and ``start`` + 1 of ``windows`` (shard numbers) at once; adds to ``counts``.

        ``reach`` windows behind the newest that was asked for stay.
        """
        self._split = split
        self._windows = windows
        self._window_of = {shard: number for number, shards in enumerate(windows) for shard in shards}
        assert len(self._window_of) == sum(map(len, windows)), "a shard stands in two windows"
        assert 0 <= start < len(windows), (start, len(windows))
        self._deadline_s = deadline_s
        self._counts = counts
        self._reach = reach
        self._changed = threading.Condition()
        # All below under the condition's lock; the progress alone is written without: one reference, one writer.
        self._oldest = self._newest = start  # windows that may be asked for, and that have been
        self._held: dict[int, FetchedShard] = {}
        self._failure: Exception | None = None
        self._stopping = False
        self._progress = (-1, 0)  # shard, bytes
        # A daemon: a read that hangs in the kernel must not keep the process alive.
        self._thread = threading.Thread(target=self._run, name="window-fetcher", daemon=True)
        self._thread.start()

    def take(self, shards: Iterable[int]) -> dict[int, FetchedShard]:
        """These shards, of windows that ``reach`` spans, once they are there.

        Raises what went wrong in fetching them; UserError if no byte comes for the deadline. A window that was
        dropped is a bug of the caller.
        """
        wanted = {shard: self._window_of.get(shard, -1) for shard in shards}
        assert min(wanted.values()) >= 0, f"shards {sorted(wanted)} are not all in the epoch's windows"
        with self._changed:
            assert not self._stopping, "closed"
            self._newest = max(self._newest, *wanted.values())
            self._drop_before(self._newest - self._reach)
            gone = {shard: window for shard, window in wanted.items() if window < self._oldest}
            assert not gone, (
                f"windows before {self._oldest} are dropped, but {gone} are asked for (shard: window)"
            )
            self._changed.notify_all()
            self._wait(wanted)
            return {shard: self._held[shard] for shard in wanted}

    def release(self, window: int) -> None:
        """Drops the windows before ``window``, whose rows nobody will ask for."""
        with self._changed:
            self._drop_before(window)

    def close(self) -> None:
        """Drops all and ends the thread."""
        with self._changed:
            self._stopping = True
            self._held.clear()
            self._changed.notify_all()
        self._thread.join(CLOSE_S)
        if self._thread.is_alive():
            _log.warning("shard %s: its fetch hangs and is left behind", self._describe_progress())

    def _drop_before(self, window: int) -> None:
        self._oldest = max(self._oldest, window)
        for shard in [shard for shard in self._held if self._window_of[shard] < self._oldest]:
            del self._held[shard]

    def _wait(self, wanted: Iterable[int]) -> None:
        started = time.monotonic()
        seen, seen_at = self._progress, started
        try:
            while any(shard not in self._held for shard in wanted):
                if self._failure is not None:
                    raise self._failure
                if self._progress != seen:
                    seen, seen_at = self._progress, time.monotonic()
                elif time.monotonic() - seen_at > self._deadline_s:
                    raise UserError(
                        f"shard {self._describe_progress()}: nothing came for {self._deadline_s:g} s: "
                        "see that its disk or store answers, and start the run again"
                    )
                self._changed.wait(min(POLL_S, self._deadline_s))
                assert not self._stopping, "closed while a read waited"
        finally:
            self._counts.waited_s += time.monotonic() - started

    def _describe_progress(self) -> str:
        shard, size = self._progress
        return f"{self._split.block(shard).path} (at byte {size:,})"

    def _run(self) -> None:
        try:
            for number in range(self._oldest, len(self._windows)):
                with self._changed:
                    while number > self._newest + 1 and not self._stopping:
                        self._changed.wait()
                for shard in self._windows[number]:
                    if number >= self._oldest:  # else the reader has gone past it
                        self._fetch(shard)
        except _Stopped:
            pass
        except Exception as error:  # whatever it is: it is raised where the shard is asked for
            with self._changed:
                self._failure = error
                self._changed.notify_all()

    def _fetch(self, shard: int) -> None:
        def report(size: int) -> None:
            self._progress = (shard, size)
            if self._stopping:
                raise _Stopped

        report(0)
        fetched = fetch_shard(self._split.block(shard), report)
        with self._changed:
            self._counts.shards += 1
            self._counts.bytes += self._progress[1]
            if self._stopping:
                raise _Stopped
            if self._window_of[shard] >= self._oldest:
                self._held[shard] = fetched
            self._changed.notify_all()

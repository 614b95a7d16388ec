"""Signs of life through the run's store: they name a rank on another host that is cut off, stopped, or dead."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterable

import torch.distributed as dist

from distill_dist.comm.silence import clone_store

# A thousand ranks ask the store a thousand times a second less than it can answer by far.
PULSE_S = 1.0
# Longest time between two signs of a rank that lives, on a machine that has much else to do.
SILENT_S = 5.0


class Pulse:
    """This rank's own signs, and a look at the others'. The store is kept by rank 0, or on its host (torchrun)."""

    def __init__(self, store: dist.Store, *, rank: int) -> None:
        """``rank`` is a global one."""
        self._rank = rank
        # a connection for each thread: a wait in one blocks the others
        self._telling, self._looking = clone_store(store), clone_store(store)
        self._told_at = time.monotonic()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._tell, daemon=True)
        self._thread.start()

    def signs(self, ranks: Iterable[int]) -> dict[int, int]:
        """How many each of ``ranks`` gave so far; -1 for all where the store itself is silent."""
        ranks = tuple(ranks)
        if time.monotonic() - self._told_at <= SILENT_S:
            with contextlib.suppress(dist.DistError):
                return {rank: int(self._looking.add(_key(rank), 0)) for rank in ranks}
        return dict.fromkeys(ranks, -1)

    def silent_since(self, before: dict[int, int]) -> list[int]:
        """Those without a sign since ``signs``, SILENT_S seconds or more ago. Rank 0 where the store is silent."""
        now = self.signs(before)
        if -1 in now.values():
            return [0]
        return [rank for rank in before if rank != self._rank and now[rank] == before[rank]]

    def end(self) -> None:
        """No more signs; a thread inside torch's C++ when the interpreter ends would take the process down."""
        self._ended.set()
        self._thread.join(SILENT_S)

    def _tell(self) -> None:
        with contextlib.suppress(dist.DistError):
            while True:
                self._telling.add(_key(self._rank), 1)
                self._told_at = time.monotonic()
                if self._ended.wait(PULSE_S):
                    return


def _key(rank: int) -> str:
    return f"pulse/{rank}"

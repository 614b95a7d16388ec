"""A micro-batch whose signals are under way, and how long they are waited for."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from distill_dist.comm.rpc_world import Reply
from distill_dist.records import Batch, SignalSpec
from distill_dist.teacher.wire import Request

# How long a wait still lasts once the run is to stop: launchers kill after 30 s.
STOP_S = 10.0


class Patience:
    """How long a step still waits for its signals; not for long once the run is to stop."""

    def __init__(self, seconds: float, should_stop: Callable[[], bool]) -> None:
        self._until, self._should_stop, self._is_cut = time.monotonic() + seconds, should_stop, False

    def left(self) -> float:
        """Seconds; none when it is 0 or less."""
        now = time.monotonic()
        if not self._is_cut and self._should_stop():
            self._is_cut, self._until = True, min(self._until, now + STOP_S)
        return self._until - now


@dataclass
class Part:
    """Rows of a micro-batch that one host was asked for."""

    host: str
    rows: list[int]
    reply: Reply | None  # None: the call itself failed
    unable: frozenset[str]  # hosts that could not compute these rows


@dataclass
class Asked:
    """One micro-batch under way."""

    batch: Batch
    spec: SignalSpec
    request: Request
    parts: list[Part]

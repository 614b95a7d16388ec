"""SIGTERM, SIGUSR1 and Ctrl-C ask a rank to stop in good order; nothing happens inside the handler.

So does whatever else one listens to: the job's time limit, another rank.
"""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Callable
from types import FrameType

_log = logging.getLogger(__name__)
# How often one listens; seconds. Asking another process takes a tenth of a millisecond, and every step asks.
LISTEN_S = 0.5


class StopSignal:
    """Remembers that a stop was asked for, and when. A second signal changes nothing, but a second Ctrl-C ends it."""

    def __init__(self) -> None:
        """Install the handlers; in the main thread only."""
        self._asked_at: float | None = None
        self._why = "by a signal"
        self._sources: list[Callable[[], str | None]] = []
        self._listened_at = 0.0
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
            signal.signal(number, self._on_signal)
        # slurm/*.sh start us with them blocked: one that came since then waits, and is heard now
        signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGTERM, signal.SIGUSR1))

    def listen(self, source: Callable[[], str | None]) -> None:
        """Ask ``source`` too: why to stop (`by …`, `before …`), or None."""
        self._sources.append(source)

    def asked(self) -> bool:
        """Whether a stop was asked for."""
        now = time.monotonic()
        if self._asked_at is None and self._sources and now - self._listened_at >= LISTEN_S:
            self._listened_at = now
            for why in filter(None, (source() for source in self._sources)):
                self._asked_at, self._why = now, why
                _log.warning("stopping %s at the next step", why)
                break
        return self._asked_at is not None

    def why(self) -> str | None:
        """Why a stop was asked for: `by a signal`, or what a source said; None: it was not."""
        return self._why if self.asked() else None

    def asked_for(self, seconds: float) -> bool:
        """Whether a stop was asked for at least ``seconds`` ago."""
        return self.asked() and self._asked_at is not None and time.monotonic() - self._asked_at >= seconds

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            signal.signal(
                signal.SIGINT, signal.default_int_handler
            )  # the second one raises KeyboardInterrupt
        if self._asked_at is None:
            self._asked_at = time.monotonic()
            _log.warning("got %s: stopping at the next step", signal.Signals(number).name)

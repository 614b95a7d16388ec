"""SIGTERM, SIGUSR1 and Ctrl-C ask a rank to stop in good order; nothing happens inside the handler."""

from __future__ import annotations

import logging
import signal
import time
from types import FrameType

_log = logging.getLogger(__name__)


class StopSignal:
    """Remembers that a stop was asked for, and when. A second signal changes nothing, but a second Ctrl-C ends it."""

    def __init__(self) -> None:
        """Install the handlers; in the main thread only."""
        self._asked_at: float | None = None
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
            signal.signal(number, self._on_signal)
        # slurm/*.sh start us with them blocked: one that came since then waits, and is heard now
        signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGTERM, signal.SIGUSR1))

    def asked(self) -> bool:
        """Whether a stop was asked for."""
        return self._asked_at is not None

    def asked_for(self, seconds: float) -> bool:
        """Whether a stop was asked for at least ``seconds`` ago."""
        return self._asked_at is not None and time.monotonic() - self._asked_at >= seconds

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            signal.signal(
                signal.SIGINT, signal.default_int_handler
            )  # the second one raises KeyboardInterrupt
        if self._asked_at is None:
            self._asked_at = time.monotonic()
            _log.warning("got %s: stopping at the next step", signal.Signals(number).name)

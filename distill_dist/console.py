"""Output whose reader may go away: an ssh that ends before the ranks it started must not end a run that still saves."""

from __future__ import annotations

import errno
import os
import sys
from typing import Any, TextIO

_GONE = (errno.EPIPE, errno.EIO)  # a pipe; a terminal


class _Outliving:
    """``stream``; once nobody reads it, what is written goes nowhere."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """See TextIO."""
        try:
            return self._stream.write(text)
        except OSError as error:
            self._let_go(error)
            return len(text)

    def flush(self) -> None:
        """See TextIO."""
        try:
            self._stream.flush()
        except OSError as error:
            self._let_go(error)

    def _let_go(self, error: OSError) -> None:
        if error.errno not in _GONE:
            raise error
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._stream.fileno())
        os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def outlive_readers() -> None:
    """From here on no print, log line or progress bar fails because its reader is gone. A full disk still does."""
    sys.stdout = _Outliving(sys.stdout)  # type: ignore[assignment]
    sys.stderr = _Outliving(sys.stderr)  # type: ignore[assignment]

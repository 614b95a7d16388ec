"""Processes of ours that a launched process starts: they end with it, and leave signals to it."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

_PR_SET_PDEATHSIG = 1
_OF_THE_PARENT = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


def start_child(
    module: str, job: dict[str, Any], *, pass_fds: Sequence[int] = (), **more: Any
) -> subprocess.Popen[bytes]:
    """``python -m module`` with ``job`` for :func:`child_job`; in the main thread, with whose end it ends."""
    argument = json.dumps({**job, "parent": os.getpid()})
    # Inherited: one that comes while the child still imports would end it before child_job ignores them.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _OF_THE_PARENT)
    try:
        return subprocess.Popen([sys.executable, "-m", module, argument], pass_fds=tuple(pass_fds), **more)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def child_job() -> dict[str, Any]:
    """In the child, first of all: its job. From here on it is killed when its parent ends, however that ends.

    Launchers signal whole trees, and a keyboard its foreground group: who stops, and when, the parent says.
    """
    job: dict[str, Any] = json.loads(sys.argv[1])
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != job.pop("parent"):
        os._exit(1)  # it had ended before
    for number in _OF_THE_PARENT:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _OF_THE_PARENT)
    return job

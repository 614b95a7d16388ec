"""Python imports this first of all in every process of a run with this folder on its path: a leak, on demand.

A teacher's worker that gets SIGUSR2 takes all the memory that malloc has left and lets the system give it no more, so
that the next allocation of any size really fails, in torch or elsewhere; the next SIGUSR2 gives it back. A limit alone
would not do: a tiny model lives on what malloc kept of the imports.
"""

from __future__ import annotations

import ctypes
import resource
import signal
import sys
from types import FrameType

# Smaller blocks stay: the process is to get an error, and to be able to say so.
LARGEST, SMALLEST = 1 << 26, 1 << 14
_libc = ctypes.CDLL(None)
_libc.malloc.restype = ctypes.c_void_p
_libc.malloc.argtypes = [ctypes.c_size_t]
_libc.free.argtypes = [ctypes.c_void_p]
_taken: list[int] = []


def _toggle(number: int, frame: FrameType | None) -> None:
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    if _taken:
        resource.setrlimit(resource.RLIMIT_AS, (hard, hard))
        while _taken:
            _libc.free(_taken.pop())
        return
    resource.setrlimit(resource.RLIMIT_AS, (1, hard))
    size = LARGEST
    while size >= SMALLEST:
        block = _libc.malloc(size)
        if block:
            _taken.append(block)
        else:
            size //= 2


if "distill_dist.assemble.teacher_worker" in sys.orig_argv:
    signal.signal(signal.SIGUSR2, _toggle)

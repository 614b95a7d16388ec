"""One piece of work beside the main thread, whose end can be asked for and waited for."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

_T = TypeVar("_T")


def in_background(work: Callable[[], _T], *, name: str) -> Future[_T]:
    """What ``work()`` returns or raises, once it has. Its thread keeps no process alive: wait for the result.

    The executors of the standard library are joined when the interpreter ends, without a deadline.
    """
    found: Future[_T] = Future()

    def run() -> None:
        try:
            result = work()
        except BaseException as error:
            found.set_exception(error)
        else:
            found.set_result(result)

    threading.Thread(target=run, name=name, daemon=True).start()
    return found

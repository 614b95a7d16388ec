"""Students in threads: their collectives, and how a call ends on each of them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

LIMIT_S = 10.0  # of a wait for a student that does not come


class Student:
    """Stands for the StudentGroup of one of ``size``; ``board`` and ``barrier`` are theirs together."""

    def __init__(self, rank: int, board: list[Any], barrier: threading.Barrier) -> None:
        self.rank, self.size = rank, len(board)
        self._board, self._barrier = board, barrier

    def agree(self, value: int) -> int:
        return max(self._gather(value))

    def hear(self, text: str | None) -> tuple[int, str]:
        said = self._gather(text)
        return next((rank, words) for rank, words in enumerate(said) if words is not None)

    def sum_integers(self, values: np.ndarray) -> np.ndarray:
        return np.sum(self._gather(values), axis=0)

    def _gather(self, value: Any) -> list[Any]:
        self._board[self.rank] = value
        self._barrier.wait()
        found = list(self._board)
        self._barrier.wait()  # nobody writes again before all have read
        return found


def on_each(size: int, call: Callable[[Any], Any]) -> list[Any]:
    """What ``call(student)`` returned, or the exception that it raised, by rank.

    A student that others wait for in vain ends them with BrokenBarrierError.
    """
    board, barrier = [None] * size, threading.Barrier(size, timeout=LIMIT_S)

    def ended(rank: int) -> Any:
        try:
            return call(Student(rank, board, barrier))
        except Exception as error:
            return error

    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(ended, range(size)))


def said(ends: Sequence[Any], kind: type[Exception]) -> list[str]:
    """What is printed of ends that are all of ``kind``: a message whose ``said`` is set comes from another student."""
    assert [type(end) for end in ends] == [kind] * len(ends), ends
    return [str(end) for end in ends if not getattr(end, "said", False)]

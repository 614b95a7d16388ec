"""Which class of difficulty the position p of an epoch draws from, and the how-manieth draw of that class it is.

An epoch is a list of segments. A segment draws, from every class of its pool, a fixed number of rows; laid out in
order of difficulty these are cut into as many strata as a batch has rows, and every round of ``batch_size``
positions takes one row of each stratum. So every batch has the pool's own mix, and nothing has to be counted to
know what stands at a position.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from distill_dist.curriculum.order import rows_at


@dataclass(frozen=True)
class Draws:
    """Positions of the epoch, from some position on, that draw from the classes below ``classes``."""

    positions: int
    classes: int


@dataclass(frozen=True)
class Segment:
    """``repeats`` × ``length`` positions from ``start`` on; each repeat draws the same number of every class.

    ``bounds`` [classes + 1] are the bounds of each class's draws among ``length``; ``served`` [classes] are the
    draws that each had in the epoch before.
    """

    start: int
    length: int
    repeats: int
    bounds: np.ndarray
    served: np.ndarray

    @property
    def end(self) -> int:
        """The first position behind it."""
        return self.start + self.length * self.repeats


def cut_segments(
    rows: np.ndarray, draws: Sequence[Draws], *, once_per_pass: bool, seed: int, epoch: int, start: int = 0
) -> list[Segment]:
    """The segments of ``draws`` one after another, over classes of ``rows`` [classes] rows each.

    With ``once_per_pass`` a class draws in proportion to what the pass has not served yet, rows that a growing
    pool admits included, so that the pass ends for all at once and no row comes twice before every admitted row
    came once. Without, it draws in proportion to its rows.
    """
    found: list[Segment] = []
    total = np.zeros(len(rows), np.int64)
    in_pass = np.zeros(len(rows), np.int64)
    for stage in draws:
        left = stage.positions
        pool = np.where(np.arange(len(rows)) < stage.classes, rows, 0)
        assert not left or pool.sum() > 0, "a pool has at least one row"
        while left:
            waiting = pool - in_pass if once_per_pass else pool
            if not waiting.any():
                in_pass[:] = 0
                continue
            size = int(waiting.sum())
            fresh = once_per_pass and not in_pass.any() and left >= 2 * size
            repeats = left // size if fresh else 1
            length = min(size, left) if once_per_pass else left
            phase = rows_at(np.array([len(found) % size]), size, seed=seed, epoch=epoch)[0]
            segment = Segment(start, length, repeats, _bounds(waiting, length, int(phase)), total.copy())
            found.append(segment)
            taken = np.diff(segment.bounds)
            total += taken * repeats
            in_pass += taken
            start, left = segment.end, left - length * repeats
    return found


def _bounds(rows: np.ndarray, length: int, phase: int) -> np.ndarray:
    """Bounds of each class's draws among ``length``: in proportion to ``rows``, each rounded up or down.

    ``phase`` in [0, Σ rows) decides which way, so that a class of few rows gets its share over many segments.
    """
    size = int(rows.sum())
    ends = np.concatenate([[0], np.cumsum(rows)])
    if size * length < 1 << 62:
        return (ends * length + phase) // size
    return np.array([(int(end) * length + phase) // size for end in ends], np.int64)


class Strata:
    """Position within a segment -> place among its draws in order of difficulty."""

    def __init__(self, batch_size: int, seed: int) -> None:
        """``batch_size`` strata; any run of them in turn is spread over all difficulties."""
        self.batch_size = batch_size
        # golden steps: a batch that a pass's end cuts in two has about the pool's mix in both parts
        step = _even_step(batch_size)
        self._turns = np.arange(batch_size, dtype=np.int64) * step % batch_size
        self._shifts = rows_at(np.arange(batch_size), batch_size, seed=seed, epoch=0)

    def places(self, within: np.ndarray, length: int) -> np.ndarray:
        """Places (int64) in [0, length) of the positions ``within`` a repeat of a segment; a bijection."""
        size = self.batch_size
        rounds, rest = divmod(length, size)
        turn, slot = np.divmod(within, size)
        stratum = self._turns[slot]
        whole = turn < rounds
        step = _even_step(rounds)
        # strata do not walk in step: where many are cut by a class's edge, their errors would add up
        shift = self._shifts[stratum] * (rounds // size + 1)
        inside = (turn + shift) % max(rounds, 1) * step % max(rounds, 1)
        places = stratum * length // size + inside
        if rest and not whole.all():
            # `length` leaves some strata one row more: those rows come last, in golden steps as well
            number = slot * _even_step(rest) % rest
            longer = ((number + 1) * size - 1) // rest
            places = np.where(whole, places, longer * length // size + rounds)
        return np.asarray(places, np.int64)


@lru_cache(maxsize=1024)
def _even_step(size: int) -> int:
    """A number near the golden share of ``size`` whose multiples visit all of [0, size), any run of them evenly.

    As even as Euclid's quotients of the two are small (Niederreiter, 1992, chapter 3): 5 at most for sizes below 5000.
    """
    near = int(size * 0.6180339887)
    candidates = range(max(1, near - 64), near + 65)
    found = (step for step in candidates if math.gcd(step, size) == 1)
    return min(found, key=lambda step: (_largest_quotient(size, step), abs(step - near)), default=1)


def _largest_quotient(larger: int, smaller: int) -> int:
    found = 0
    while smaller:
        found = max(found, larger // smaller)
        larger, smaller = smaller, larger % smaller
    return found


def draws_per_class(segments: Sequence[Segment]) -> np.ndarray:
    """How often each class is drawn in all of ``segments``, int64 [classes]."""
    return np.asarray(sum(np.diff(segment.bounds) * segment.repeats for segment in segments), np.int64)


def positions_by_segment(
    segments: Sequence[Segment], positions: np.ndarray
) -> Iterator[tuple[Segment, np.ndarray]]:
    """Each segment that holds some of ``positions``, with their indices."""
    starts = np.array([segment.start for segment in segments], np.int64)
    number = np.searchsorted(starts, positions, side="right") - 1
    first, last = int(number.min(initial=len(segments))), int(number.max(initial=-1))
    for index in range(first, last + 1):
        chosen = np.flatnonzero(number == index) if first != last else np.arange(len(positions))
        if len(chosen):
            yield segments[index], chosen

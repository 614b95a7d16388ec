"""How much of the ranked data is admitted as training goes on (METHOD.md §3), and where an epoch's pool changes."""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

# Shares are fractions of 2**32, so that the last bits of a platform's exp and log change no cut.
WHOLE = 1 << 32
# A share that is such a fraction itself (b = ¼) may come out a few times 2**-53 below it: still the same cut.
NOISE = 2.0**-16  # in units of 1 / WHOLE
# Different pools of an epoch: each is one more class of difficulty for every shard to count.
MAX_STAGES = 128


@dataclass(frozen=True)
class Pacing:
    """Share of rows admitted after ``step`` of ``total_steps`` committed optimizer steps; never falls.

    ``start`` is b (c₀ of `competence`), ``full_at`` a, the share of all steps after which everything is in.
    """

    kind: str
    total_steps: int
    start: float = 0.2
    full_at: float = 0.8
    power: float = 2.0
    increase: float = 1.9
    increase_every: int = 100

    def share(self, step: int) -> float:
        """g(t), above 0, at most 1."""
        return min(1.0, self._formula(step))

    def cut(self, step: int) -> int:
        """g(t) in units of 1 / WHOLE, rounded down; the rows admitted are ``rows_of(cut, N)``."""
        return max(1, math.floor(self.share(step) * WHOLE + NOISE))

    @cached_property
    def _formula(self) -> Callable[[int], float]:
        if self.kind == "fixed_exponential":
            return self._fixed_exponential
        if self.kind == "competence":
            first = self.start**self.power
            return lambda step: (step * (1 - first) / self.total_steps + first) ** (1 / self.power)
        grow = _GROWTH[self.kind]
        length = self.full_at * self.total_steps
        return lambda step: self.start + (1 - self.start) * grow(min(step / length, 1.0))

    def _fixed_exponential(self, step: int) -> float:
        rises = step // self.increase_every
        if rises * math.log(self.increase) >= -math.log(self.start):
            return 1.0  # before the power overflows
        return float(self.start * self.increase**rises)


# x = t/aT in [0, 1] -> growth from 0 to 1
_GROWTH: dict[str, Callable[[float], float]] = {
    "none": lambda x: 1.0,
    "linear": lambda x: x,
    "quadratic": lambda x: x**2,
    "root": math.sqrt,
    "step": lambda x: math.floor(x + 2.0**-40),  # a·T comes out above the step that it means, e.g. 0.55 · 100
    "exponential": lambda x: math.expm1(10 * x) / math.expm1(10),
    "logarithmic": lambda x: 1 + 0.1 * math.log(x + math.exp(-10)),
}


def rows_of(cut: int, num_rows: int) -> int:
    """Rows admitted out of ``num_rows`` at ``cut``: rounded up, so that a pool is never empty."""
    return -(-cut * num_rows // WHOLE)


@dataclass(frozen=True)
class Stage:
    """Steps of an epoch, from ``first_step`` to the next stage's, that draw from one pool."""

    first_step: int
    cut: int


def stages_of_epoch(pacing: Pacing, *, epoch: int, steps_per_epoch: int, align: int) -> list[Stage]:
    """Where the pool of an epoch changes: exactly at the steps where g does, so far as those are few.

    The pool grows at multiples of ``align`` steps (length windows are cut from one pool) and at most MAX_STAGES
    times; it is that of its stage's first step, so never ahead of the pacing.
    """
    places = range(0, steps_per_epoch, align)

    def cut_at(place: int) -> int:
        return pacing.cut(epoch * steps_per_epoch + places[place])

    starts = [0]
    while starts[-1] < len(places):
        now = cut_at(starts[-1])
        if len(starts) > MAX_STAGES:
            every = -(-len(places) // MAX_STAGES)
            return [Stage(places[place], cut_at(place)) for place in range(0, len(places), every)]
        later = range(starts[-1], len(places))
        starts.append(starts[-1] + bisect.bisect_right(later, now, key=cut_at))
    return [Stage(places[place], cut_at(place)) for place in starts[:-1]]

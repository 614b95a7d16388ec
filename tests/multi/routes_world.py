"""The cells of the matrix of routes, shared by the test and its ranks. Pure functions."""

from __future__ import annotations

import itertools
from dataclasses import asdict, dataclass

STEPS = 4  # of SGD


@dataclass(frozen=True)
class Cell:
    """One combination at some ZeRO stage."""

    route: str
    attention: str
    checkpointing: bool
    accumulation: int
    precision: str

    @property
    def name(self) -> str:
        """For messages and file names."""
        return "-".join(str(value) for value in asdict(self).values())

    @property
    def cut(self) -> str:
        """The cut of engine_world that gives so many micro-batches."""
        return {1: "whole", 3: "6 rows"}[self.accumulation]

    @property
    def is_forbidden(self) -> bool:
        """What no kernel or number format can do (FACTS)."""
        if self.route == "double_backward":
            return self.attention == "sdpa"
        return self.precision == "bf16"


ROUTES = ("double_backward", "central_difference")
ATTENTION = ("eager", "math", "sdpa")
PRECISION = ("fp32", "bf16", "bf16_autocast")
ALL = tuple(
    Cell(*values) for values in itertools.product(ROUTES, ATTENTION, (False, True), (1, 3), PRECISION)
)


def covering(stage: int) -> tuple[Cell, ...]:
    """Few cells in which every pair of two settings stands once; which ones differs by stage."""
    columns = (ROUTES, ATTENTION, (False, True), (1, 3), PRECISION)
    wanted = {
        (i, a, j, b)
        for (i, left), (j, right) in itertools.combinations(enumerate(columns), 2)
        for a in left
        for b in right
    }
    chosen: list[Cell] = []
    order = ALL[stage * 7 :] + ALL[: stage * 7]
    while wanted:
        best = max(order, key=lambda cell: len(wanted & _pairs(cell)))
        chosen.append(best)
        wanted -= _pairs(best)
    return tuple(chosen)


def _pairs(cell: Cell) -> set[tuple[int, object, int, object]]:
    values = tuple(asdict(cell).values())
    return {(i, a, j, b) for (i, a), (j, b) in itertools.combinations(enumerate(values), 2)}

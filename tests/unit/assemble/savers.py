"""A student of two without a process, and what saves its checkpoints."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from distill_dist.assemble.saver import Saver
from distill_dist.checkpoint import Keep


class Group:
    """One of two students; ``others`` is what the sibling says when they agree."""

    size = 2

    def __init__(self, rank: int, others: int = 0) -> None:
        self.rank, self.others, self.agreed = rank, others, 0

    def agree(self, value: int) -> int:
        self.agreed += 1
        return max(value, self.others)

    def sum_integers(self, values: NDArray[np.int64]) -> NDArray[np.int64]:
        return values  # the sibling has nothing to add


def saver_of(
    root: Path, group: Group, *, in_background: bool = True, limit_s: float = 60.0, **more: Any
) -> Saver:
    """Of two weights; its ``telemetry.written`` holds what TensorBoard gets."""
    written: list[tuple[int, dict[str, float]]] = []
    telemetry: Any = SimpleNamespace(
        written=written, write=lambda step, scalars: written.append((step, scalars))
    )
    students: Any = group
    return Saver(
        **{
            "root": root, "group": students, "telemetry": telemetry, "keep": Keep(2), "in_background": in_background,
            "limit_s": limit_s, "gather": lambda: {"weights/a": torch.ones(2)}, "saved_step": 0, **more,
        }
    )  # fmt: skip

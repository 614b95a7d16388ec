"""Small snapshots of known content."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from distill_dist.curriculum.scores import COLUMN_TYPES, Columns
from distill_dist.curriculum.snapshot_record import (
    Origin,
)
from distill_dist.curriculum.snapshot_writer import SnapshotWriter

SIZES = (5, 1, 8)
ORIGIN = Origin(step=40, measure="margin", smoothing=0.5, manifest="m" * 64, parent="")


def some_columns(rows: int, seed: int) -> Columns:
    generator = np.random.default_rng(seed)
    values = {
        name: (
            generator.normal(size=rows) if dtype.kind == "f" else generator.integers(0, 60_000, rows)
        ).astype(dtype)
        for name, dtype in COLUMN_TYPES.items()
    }
    return Columns(**values)


def write(
    root: Path,
    number: int,
    *,
    seed: int = 0,
    sizes: tuple[int, ...] = SIZES,
    keep: int = 9,
    in_use: frozenset[str] = frozenset(),
) -> Path:
    writer = SnapshotWriter(root, number)
    writer.begin()
    entries = [writer.write_block(i, some_columns(rows, seed + i)) for i, rows in enumerate(sizes)]
    return writer.commit(entries, ORIGIN, keep=keep, in_use=in_use)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def column(name: str, *, seed: int = 0, sizes: tuple[int, ...] = SIZES) -> np.ndarray:
    return np.concatenate([getattr(some_columns(rows, seed + i), name) for i, rows in enumerate(sizes)])

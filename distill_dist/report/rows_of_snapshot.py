"""What the newest snapshot says of the training rows: how sure the student is of them, and how that moved."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from distill_dist.curriculum.snapshot import Snapshot, list_snapshots
from distill_dist.errors import UserError

MOST_ROWS = 2_000_000  # read of one snapshot, 26 bytes each; of a larger one whole blocks at equal distances
BINS = 25
_UNIT = np.linspace(0.0, 1.0, BINS + 1)
_HALF = np.linspace(0.0, 0.5, BINS + 1)  # the standard deviation of a number in [0, 1] is at most 1/2


@dataclass(frozen=True)
class RowMap:
    """Rows by their mean p(true class) over the snapshots and its standard deviation (Swayamdipta et al. 2020).

    ``counts`` int64 [BINS of deviation, BINS of mean]; ``forgotten`` int64 [k]: rows forgotten 0, 1, … times.
    """

    name: str
    step: int
    rows: int  # looked at
    of: int  # in the snapshot
    counts: np.ndarray
    forgotten: np.ndarray


def read_row_map(run: Path, problems: list[str]) -> RowMap | None:
    """Of the run's newest snapshot; None where it has none, or a damaged one, which goes into ``problems``."""
    found = list_snapshots(run / "snapshots")
    if not found:
        return None
    try:
        return _row_map(Snapshot.open(found[-1]))
    except (UserError, OSError) as error:
        problems.append(f"snapshots/{found[-1].name}: {error}")
        return None


def _row_map(snapshot: Snapshot) -> RowMap | None:
    counts = np.zeros((BINS, BINS), np.int64)
    forgotten = np.zeros(1, np.int64)
    rows = 0
    for block in _blocks(snapshot):
        columns = snapshot.columns(block)
        rows += len(columns)
        seen = columns.count > 0
        if not seen.any():
            continue
        deviation = np.sqrt(columns.m2[seen].astype(np.float64) / columns.count[seen])
        counts += np.histogram2d(
            np.clip(deviation, 0, 0.5), np.clip(columns.mean[seen], 0, 1), bins=(_HALF, _UNIT)
        )[0].astype(np.int64)
        forgotten = _add(forgotten, np.bincount(columns.forgotten[seen]))
    if not counts.any():
        return None  # scores from a file: nothing was measured
    origin = snapshot.record.origin
    return RowMap(snapshot.name, origin.step, rows, snapshot.num_rows, counts, forgotten)


def _blocks(snapshot: Snapshot) -> list[int]:
    """All blocks, or as many at equal distances as hold about MOST_ROWS."""
    stride = -(-snapshot.num_rows // MOST_ROWS)
    return list(range(0, snapshot.num_blocks, max(1, stride)))


def _add(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    size = max(len(left), len(right))
    return np.pad(left, (0, size - len(left))) + np.pad(right, (0, size - len(right)))

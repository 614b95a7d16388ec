"""A snapshot of random confidences on disk, for the benchmark of the curriculum; and a disk that has to be read."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

from distill_dist.curriculum.scores import UNKNOWN, Columns
from distill_dist.curriculum.snapshot_record import Origin
from distill_dist.curriculum.snapshot_writer import SnapshotWriter

MEAN, DEVIATION = 2.0, 2.0  # of the logit: most rows are easy, as a trained model finds them


def confidences(block: int, rows: int, *, seed: int) -> np.ndarray:
    """Confidence of a block's rows (float32 [rows]): the sigmoid of a normal number."""
    logits = np.random.default_rng([seed, block]).standard_normal(rows, np.float32) * DEVIATION + MEAN
    confidence: np.ndarray = 1 / (1 + np.exp(-logits))
    return confidence


def write_snapshot(
    root: Path, *, rows: int, shard_rows: int, seed: int, progress: Callable[[str], None]
) -> Path:
    """A snapshot of ``rows`` in shards of ``shard_rows`` below ``root``, through the product's writer."""
    writer = SnapshotWriter(root, 1)
    writer.begin()
    entries = []
    num_blocks = -(-rows // shard_rows)
    for block in range(num_blocks):
        size = min(shard_rows, rows - block * shard_rows)
        entries.append(writer.write_block(block, _columns(confidences(block, size, seed=seed))))
        if block % 64 == 0:
            progress(f"{rows:.0e} rows: scores {block / num_blocks:.0%}")
    origin = Origin(step=0, measure="true_probability", smoothing=0.0, manifest="", parent="")
    return writer.commit(entries, origin, keep=1)


def _columns(score: np.ndarray) -> Columns:
    """A first snapshot with these scores."""
    rows = len(score)
    return Columns(
        score=score,
        loss=-np.log(np.maximum(score, np.finfo(np.float32).tiny)),
        mean=score,
        m2=np.zeros(rows, np.float32),
        teacher_loss=np.full(rows, np.nan, np.float32),
        count=np.ones(rows, np.uint16),
        predicted=np.full(rows, UNKNOWN, np.uint16),
        forgotten=np.zeros(rows, np.uint16),
    )


def drop_cached(*paths: Path) -> None:
    """Asks the system to forget the files, and those in folders, so that the next reader goes to the disk."""
    for path in paths:
        for file in sorted(path.iterdir()) if path.is_dir() else [path]:
            descriptor = os.open(file, os.O_RDONLY)
            try:
                os.fsync(descriptor)  # only what is written can be forgotten
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(descriptor)

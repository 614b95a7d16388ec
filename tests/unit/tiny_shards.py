"""Prepared folders of a few random rows, made without text and tokenizer."""

from __future__ import annotations

import contextlib

import numpy as np

from distill_dist.data.manifest import Manifest, save_manifest
from distill_dist.data.rows import TextRow
from distill_dist.data.shard_writer import ShardWriter

LABELS = ("no", "yes")


def make_rows(count, seed=0, sources=()):
    """(tokens [2, L], row) with lengths 1 to 40, the whole uint16 range among the ids; ``sources`` by turns."""
    rng = np.random.default_rng(seed)
    rows = []
    for number in range(count):
        length = int(rng.integers(1, 41))
        tokens = np.stack([rng.integers(0, 1 << 16, length), rng.integers(0, 2, length)])
        source = sources[number % len(sources)] if sources else None
        row = TextRow(3 * number + 2, ("t",), number % 2, number % 5 - 1, (number + 1) % 2, source)
        rows.append((tokens, row))
    return rows


def write(folder, rows, *, rows_per_shard=10, dtype="<u2", split="train"):
    """Writes the split and the manifest of the folder, which is returned."""
    writer = ShardWriter(folder, split, rows_per_shard=rows_per_shard, dtype=np.dtype(dtype))
    with contextlib.closing(writer):
        for tokens, row in rows:
            writer.add(tokens, row)
    entry = writer.finish(truncated=3, bad_rows={"empty text": 1}, labels=LABELS)
    manifest = Manifest("custom", "accuracy", LABELS, 64, 0, 100, "f", {split: entry}, {})
    save_manifest(manifest, folder)
    return manifest


def flip(path, position):
    """Changes one bit of the byte at ``position``."""
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)

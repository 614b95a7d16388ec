"""The index beside a shard: where each row's tokens lie, and what is asked of rows unread."""

from __future__ import annotations

import io
import zipfile
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

# A zip entry carries a time; this is the earliest that zip knows, so that equal rows give equal files.
NO_TIME = (1980, 1, 1, 0, 0, 0)


@dataclass(frozen=True)
class ShardIndex:
    """One entry per row of the shard, in its order."""

    offset: np.ndarray  # int64: first byte of the raw tokens [2, L] in the tar
    length: np.ndarray  # uint16: L
    label: np.ndarray  # int32
    clean_label: np.ndarray  # int32, -1 unknown
    difficulty: np.ndarray  # int32, -1 unknown
    source: np.ndarray  # int32: place in the manifest's `sources`, -1 without a column of sources
    crc32: np.ndarray  # uint32 of the raw tokens
    dtype: np.ndarray  # string, 0-d: type of the raw tokens, "<u2" or "<i4"


def index_path(shard: Path) -> Path:
    """`shard-000000.tar` -> `shard-000000.index.npz`."""
    return shard.with_suffix(".index.npz")


def save_index(index: ShardIndex, path: Path) -> None:
    """Writes a plain npz without pickles; equal contents give equal bytes."""
    with zipfile.ZipFile(path, "w") as archive:
        for field in fields(index):
            buffer = io.BytesIO()
            np.lib.format.write_array(buffer, getattr(index, field.name), allow_pickle=False)
            archive.writestr(zipfile.ZipInfo(f"{field.name}.npy", NO_TIME), buffer.getvalue())


def parse_index(content: bytes) -> ShardIndex:
    """The index in the bytes of its file; ValueError, KeyError or BadZipFile if they are none."""
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        return ShardIndex(**{field.name: arrays[field.name] for field in fields(ShardIndex)})

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
class TokenColumns:
    """Where the tokens of each row that the teacher reads lie: of `data.teacher_tokenizer`."""

    offset: np.ndarray  # int64: first byte of the raw tokens [2, L] in the tar
    length: np.ndarray  # uint16: L
    crc32: np.ndarray  # uint32 of the raw tokens
    dtype: np.ndarray  # string, 0-d: type of the raw tokens, "<u2" or "<i4"


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
    teacher: TokenColumns | None = None  # None: the teacher reads the same tokens


_COLUMNS = tuple(field.name for field in fields(TokenColumns))
_OWN = tuple(field.name for field in fields(ShardIndex) if field.name != "teacher")
_TEACHER = "teacher_"  # begins the names of its columns in the file


def index_path(shard: Path) -> Path:
    """`shard-000000.tar` -> `shard-000000.index.npz`."""
    return shard.with_suffix(".index.npz")


def save_index(index: ShardIndex, path: Path) -> None:
    """Writes a plain npz without pickles; equal contents give equal bytes."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, values in _arrays(index).items():
            buffer = io.BytesIO()
            np.lib.format.write_array(buffer, values, allow_pickle=False)
            archive.writestr(zipfile.ZipInfo(f"{name}.npy", NO_TIME), buffer.getvalue())


def _arrays(index: ShardIndex) -> dict[str, np.ndarray]:
    found = {name: getattr(index, name) for name in _OWN}
    if index.teacher is not None:
        found |= {f"{_TEACHER}{name}": getattr(index.teacher, name) for name in _COLUMNS}
    return found


def parse_index(content: bytes) -> ShardIndex:
    """The index in the bytes of its file; ValueError, KeyError or BadZipFile if they are none."""
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        own = {name: arrays[name] for name in _OWN}
        if f"{_TEACHER}{_COLUMNS[0]}" not in arrays.files:
            return ShardIndex(**own)
        columns = {name: arrays[f"{_TEACHER}{name}"] for name in _COLUMNS}
        return ShardIndex(**own, teacher=TokenColumns(**columns))

"""Random rows of a prepared split, by memory map, each checked against its checksum."""

from __future__ import annotations

import hashlib
import mmap
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from distill_dist.data.manifest import PREPARE_COMMAND, Manifest, ShardEntry, load_manifest
from distill_dist.data.shard_index import ShardIndex, TokenColumns, index_path, parse_index
from distill_dist.durable import sha256_file
from distill_dist.errors import UserError


@dataclass(frozen=True)
class Example:
    """One tokenised row. ``input_ids`` and ``token_type_ids`` int64 [L], special tokens included.

    ``teacher_tokens`` int64 [2, L]: ids and types of the same text as the teacher reads it, where it has a tokenizer of
    its own.
    """

    row: int
    input_ids: np.ndarray
    token_type_ids: np.ndarray
    label: int
    teacher_tokens: np.ndarray | None = None


@dataclass(frozen=True)
class Block:
    """The rows of one shard, and where they lie in its tar: all that it takes to read it from end to end.

    A row is ``streams`` entries, one after another: its tokens and, if there are any, the teacher's own.
    """

    path: Path
    bytes: int  # of the tar
    first_row: int
    offset: np.ndarray  # int64 [n]: first byte of an entry in the tar, ascending
    size: np.ndarray  # int64 [n]: its bytes
    crc32: np.ndarray  # uint32 [n] of its bytes
    streams: int = 1


class _Stream:
    """Where the rows' raw tokens of one vocabulary lie, over all shards."""

    def __init__(self, columns: list[TokenColumns | ShardIndex]) -> None:
        self.offsets = np.concatenate([each.offset for each in columns])
        self.lengths = np.concatenate([each.length for each in columns])
        self.checksums = np.concatenate([each.crc32 for each in columns])
        self.dtypes = [np.dtype(str(each.dtype)) for each in columns]

    def size(self, rows: slice, shard: int) -> np.ndarray:
        """Bytes of the raw tokens of ``rows``, all of ``shard``, int64."""
        return self.lengths[rows].astype(np.int64) * (2 * self.dtypes[shard].itemsize)


class PreparedSplit:
    """The rows of one split. Holds the index in memory (30 bytes a row, 14 more where the teacher has tokens of its
    own) and maps the shards when touched.

    ``lengths`` uint16, ``labels``, ``clean_labels``, ``difficulties`` and ``sources`` int32 (-1: unknown), all
    [rows]; a source is a place in the manifest's `sources`. ``block_sizes`` (rows) and ``block_bytes`` (of the tar)
    int64 [shards].
    """

    def __init__(self, paths: list[Path], indexes: list[ShardIndex], block_bytes: list[int]) -> None:
        """``indexes`` belong to the shards at ``paths``, whose tars have ``block_bytes``; at least one."""
        self._paths = paths
        self.block_sizes = np.array([len(index.offset) for index in indexes], dtype=np.int64)
        self.block_bytes = np.array(block_bytes, dtype=np.int64)
        self._starts = np.cumsum(self.block_sizes) - self.block_sizes
        teacher: list[TokenColumns | ShardIndex] = [index.teacher for index in indexes if index.teacher]
        self._streams = (_Stream([*indexes]), *((_Stream(teacher),) if teacher else ()))
        self._maps: dict[int, mmap.mmap] = {}
        self.lengths = self._streams[0].lengths
        self.labels = np.concatenate([index.label for index in indexes])
        self.clean_labels = np.concatenate([index.clean_label for index in indexes])
        self.difficulties = np.concatenate([index.difficulty for index in indexes])
        self.sources = np.concatenate([index.source for index in indexes])

    @property
    def num_rows(self) -> int:
        """Rows of the split."""
        return len(self.lengths)

    @property
    def teacher_lengths(self) -> np.ndarray:
        """Tokens of every row as its teacher reads it, uint16 [rows]."""
        return self._streams[-1].lengths

    @property
    def streams(self) -> int:
        """Vocabularies that a row's tokens are kept in: 2 where the teacher has its own."""
        return len(self._streams)

    def read(self, rows: np.ndarray) -> list[Example]:
        """The rows with these numbers, in this order; UserError if a row's bytes are not those written."""
        numbers, shards = self.locate(rows)
        raws = zip(*(self._read_stream(stream, numbers, shards) for stream in self._streams), strict=True)
        labels = self.labels[numbers].tolist()
        rows_of = zip(numbers.tolist(), shards.tolist(), raws, labels, strict=True)
        return [self.decode(row, shard, raw, label) for row, shard, raw, label in rows_of]

    def locate(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(``rows`` as int64, the number of each one's shard int64); IndexError if the split has no such row."""
        numbers = np.asarray(rows, dtype=np.int64)
        if len(numbers) and not (numbers.min() >= 0 and numbers.max() < self.num_rows):
            raise IndexError(f"rows {numbers.min()} to {numbers.max()} asked of a split of {self.num_rows}")
        return numbers, np.searchsorted(self._starts, numbers, side="right") - 1

    def block(self, shard: int) -> Block:
        """The rows of shard number ``shard``."""
        first = int(self._starts[shard])
        rows = slice(first, first + int(self.block_sizes[shard]))

        def in_turn(columns: list[np.ndarray]) -> np.ndarray:
            return np.stack(columns, axis=1).reshape(-1)

        return Block(
            path=self._paths[shard],
            bytes=int(self.block_bytes[shard]),
            first_row=first,
            offset=in_turn([stream.offsets[rows] for stream in self._streams]),
            size=in_turn([stream.size(rows, shard) for stream in self._streams]),
            crc32=in_turn([stream.checksums[rows] for stream in self._streams]),
            streams=len(self._streams),
        )

    def decode(self, row: int, shard: int, raw: Sequence[bytes | memoryview], label: int) -> Example:
        """The row whose raw tokens in ``shard`` are ``raw``, one for each of the streams."""
        tokens, *teacher = (
            np.frombuffer(each, stream.dtypes[shard]).reshape(2, -1).astype(np.int64)
            for each, stream in zip(raw, self._streams, strict=True)
        )
        return Example(row, tokens[0], tokens[1], label, teacher[0] if teacher else None)

    def _read_stream(self, stream: _Stream, numbers: np.ndarray, shards: np.ndarray) -> list[bytes]:
        """The raw tokens of these rows, each of its shard."""
        columns = (
            numbers,
            shards,
            stream.offsets[numbers],
            stream.lengths[numbers],
            stream.checksums[numbers],
        )
        raws = []
        # As lists at once: reading a numpy scalar costs as much as reading the row.
        for row, shard, offset, length, checksum in zip(*(each.tolist() for each in columns), strict=True):
            raw = self._map(shard)[offset : offset + 2 * length * stream.dtypes[shard].itemsize]
            if zlib.crc32(raw) != checksum:
                raise UserError(describe_damage(self._paths[shard], f"row {row} does not have its checksum"))
            raws.append(raw)
        return raws

    def _map(self, shard: int) -> mmap.mmap:
        if shard not in self._maps:
            try:
                with self._paths[shard].open("rb") as file:
                    self._maps[shard] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            except (OSError, ValueError) as error:
                raise UserError(describe_damage(self._paths[shard], str(error))) from error
        return self._maps[shard]

    def __getstate__(self) -> dict[str, Any]:
        """Without the maps: another process makes its own."""
        return {**self.__dict__, "_maps": {}}


def open_split(prepared: Path, split: str) -> PreparedSplit:
    """The split of a prepared folder, its index checked and its shards there in full length.

    Raises UserError naming the shard that is missing, cut short or has another index; the splits there are;
    or how to prepare.
    """
    manifest = load_manifest(prepared)
    if split not in manifest.splits:
        raise UserError(f"{prepared} has no split {split!r}; it has {', '.join(manifest.splits)}")
    entries = manifest.splits[split].shards
    indexes = [_checked_index(prepared, entry) for entry in entries]
    paths = [prepared / entry.file for entry in entries]
    return PreparedSplit(paths, indexes, [entry.bytes for entry in entries])


def find_damage(prepared: Path, manifest: Manifest) -> str | None:
    """The first shard whose bytes are not those of the manifest, and why; None if all are. Reads all."""
    for entry in (entry for split in manifest.splits.values() for entry in split.shards):
        try:
            _checked_index(prepared, entry)
        except UserError as error:
            return str(error)
        if sha256_file(prepared / entry.file) != entry.sha256:
            return describe_damage(prepared / entry.file, "its sha256 is not the manifest's")
    return None


def _checked_index(prepared: Path, entry: ShardEntry) -> ShardIndex:
    shard = prepared / entry.file
    try:
        size = shard.stat().st_size
        content = index_path(shard).read_bytes()
    except OSError as error:
        raise UserError(describe_damage(shard, str(error))) from error
    if size != entry.bytes:
        raise UserError(describe_damage(shard, f"it has {size} bytes instead of {entry.bytes}"))
    if hashlib.sha256(content).hexdigest() != entry.index_sha256:
        raise UserError(describe_damage(shard, "its index does not have the manifest's sha256"))
    try:
        return parse_index(content)
    except (ValueError, KeyError, zipfile.BadZipFile) as error:
        raise UserError(describe_damage(shard, f"its index cannot be read: {error}")) from error


def describe_damage(shard: Path, reason: str) -> str:
    """What to tell the owner of a shard that is not as it was written."""
    return f"shard {shard} is missing or damaged ({reason}): prepare again with {PREPARE_COMMAND}"

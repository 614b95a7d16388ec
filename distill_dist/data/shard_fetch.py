"""One shard from end to end, in one sequential pass: its rows' raw tokens, each checked against its checksum."""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from webdataset.gopen import gopen

from distill_dist.data.manifest import PREPARE_COMMAND
from distill_dist.data.shards import Block, describe_damage
from distill_dist.errors import UserError

# Bytes per read: large for a disk that seeks, and 10 minutes of a store that gives 500 bytes a second.
CHUNK_BYTES = 1 << 18


class _Stream(Protocol):
    """What webdataset opens: a file, or a pipe from a program that fetches."""

    def read(self, size: int, /) -> bytes: ...


@dataclass(frozen=True)
class FetchedShard:
    """The raw tokens of a shard's rows, one after another, without the tar around them."""

    data: bytearray
    begins: np.ndarray  # int64 [n + 1]: row i is data[begins[i] : begins[i + 1]]


def fetch_shard(block: Block, report: Callable[[int], None]) -> FetchedShard:
    """Reads the whole tar once; ``report`` is told the bytes read so far and may raise to end it.

    Opened by webdataset, whose addresses may be files or programs; rows are found by the index and not by its tar
    parser, which costs 55 µs a row of the interpreter against 4, and the trainer waits meanwhile. UserError naming
    the shard if it cannot be read, or is not as it was written.
    """
    address = str(block.path.absolute())  # a relative one with a colon would be taken for a scheme
    try:
        with contextlib.closing(gopen(address, "rb")) as stream:
            return _copy_rows(stream, block, report)
    except UserError:
        raise
    except (OSError, ValueError) as error:  # ValueError: webdataset is told by its environment not to open it
        raise UserError(
            f"shard {block.path} cannot be fetched ({error}): see that its disk or store answers and start the run "
            f"again; if the shard is gone, prepare again with {PREPARE_COMMAND}"
        ) from error


def _copy_rows(stream: _Stream, block: Block, report: Callable[[int], None]) -> FetchedShard:
    begins = np.concatenate([[0], np.cumsum(block.size)])
    data = bytearray(int(begins[-1]))
    ends = block.offset + block.size
    row, base, rest = (
        0,
        0,
        b"",
    )  # the next row; `rest` are the tar's bytes from `base` on that it may begin in
    while chunk := stream.read(CHUNK_BYTES):
        piece = rest + chunk
        end = base + len(piece)
        whole = int(np.searchsorted(ends, end, side="right"))  # rows before this one lie in the bytes so far
        _copy(piece, block, range(row, whole), base, data, begins)
        row = whole
        keep = min(int(block.offset[row]), end) if row < len(ends) else end
        rest, base = piece[keep - base :], keep
        report(end)
    if base + len(rest) != block.bytes:
        raise UserError(
            describe_damage(block.path, f"it has {base + len(rest)} bytes instead of {block.bytes}")
        )
    return FetchedShard(data, begins)


def _copy(piece: bytes, block: Block, rows: range, base: int, data: bytearray, begins: np.ndarray) -> None:
    chosen = slice(rows.start, rows.stop)
    starts = (block.offset[chosen] - base).tolist()
    columns = (starts, begins[chosen].tolist(), block.size[chosen].tolist(), block.crc32[chosen].tolist())
    for row, (start, begin, size, checksum) in enumerate(zip(*columns, strict=True), rows.start):
        raw = piece[start : start + size]
        if zlib.crc32(raw) != checksum:
            reason = f"row {block.first_row + row} does not have its checksum"
            raise UserError(describe_damage(block.path, reason))
        data[begin : begin + size] = raw

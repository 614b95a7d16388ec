"""One shard from end to end, in one sequential pass: its rows' raw tokens, each checked against its checksum."""

from __future__ import annotations

import contextlib
import itertools
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
    """The raw tokens of a shard's rows, one after another, without the tar around them.

    Entry i of the block is data[begins[i] : begins[i + 1]]; a row is as many entries as the block has streams.
    """

    data: bytearray
    begins: np.ndarray  # int64 [n + 1]

    def row(self, place: int, *, streams: int) -> list[memoryview]:
        """The raw tokens of the ``place``-th row of the shard, one for each of its streams."""
        ends = self.begins[place * streams : (place + 1) * streams + 1].tolist()
        view = memoryview(self.data)
        return [view[begin:end] for begin, end in itertools.pairwise(ends)]


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
    # the next entry of the block; `rest` are the tar's bytes from `base` on that it may begin in
    entry, base, rest = 0, 0, b""
    while chunk := stream.read(CHUNK_BYTES):
        piece = rest + chunk
        end = base + len(piece)
        whole = int(
            np.searchsorted(ends, end, side="right")
        )  # entries before this one lie in the bytes so far
        _copy(piece, block, range(entry, whole), base, data, begins)
        entry = whole
        keep = min(int(block.offset[entry]), end) if entry < len(ends) else end
        rest, base = piece[keep - base :], keep
        report(end)
    if base + len(rest) != block.bytes:
        raise UserError(
            describe_damage(block.path, f"it has {base + len(rest)} bytes instead of {block.bytes}")
        )
    return FetchedShard(data, begins)


def _copy(piece: bytes, block: Block, entries: range, base: int, data: bytearray, begins: np.ndarray) -> None:
    chosen = slice(entries.start, entries.stop)
    starts = (block.offset[chosen] - base).tolist()
    columns = (starts, begins[chosen].tolist(), block.size[chosen].tolist(), block.crc32[chosen].tolist())
    for entry, (start, begin, size, checksum) in enumerate(zip(*columns, strict=True), entries.start):
        raw = piece[start : start + size]
        if zlib.crc32(raw) != checksum:
            reason = f"row {block.first_row + entry // block.streams} does not have its checksum"
            raise UserError(describe_damage(block.path, reason))
        data[begin : begin + size] = raw

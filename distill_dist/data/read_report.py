"""What reading a split will cost, before the first byte is read: for the log of a run."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from distill_dist.data.shards import Block, PreparedSplit

PAGE_BYTES = 4096
WINDOWS_HELD = 3  # of WindowedSplit: the one in use, the one before it, the one that is being fetched
_MIB = 1 << 20


@dataclass(frozen=True)
class ReadReport:
    """Of one epoch in which every row is read once, by one process that finds nothing in the page cache."""

    bytes_used: int  # raw tokens
    bytes_read: int  # from the disk or store
    cache_bytes: int  # so that no byte is read twice: of page cache (random rows), of own memory (windows)
    text: str  # one line that says it

    @property
    def amplification(self) -> float:
        """Bytes read per byte used."""
        return self.bytes_read / self.bytes_used


def read_report(split: PreparedSplit, *, window_shards: int) -> ReadReport:
    """The cost of `data.window_shards`; 0: of random rows by memory map, without the kernel's read-around."""
    blocks = [split.block(shard) for shard in range(len(split.block_sizes))]
    payloads = [int(block.size.sum()) for block in blocks]
    used, whole = sum(payloads), int(split.block_bytes.sum())
    shards = f"{len(blocks)} shards of {_mib(whole)} in all"
    if window_shards:
        held = sum(sorted(payloads, reverse=True)[: WINDOWS_HELD * window_shards])
        text = (
            f"data.window_shards={window_shards}: every process reads {shards} once an epoch, "
            f"{whole / used:.1f} bytes per byte of rows, and holds up to {_mib(held)} of rows"
        )
        return ReadReport(used, whole, held, text)
    touched = sum(_touched_bytes(block) for block in blocks)
    text = (
        f"data.window_shards=0: random rows by memory map from {shards}, {touched / used:.1f} bytes read per byte "
        f"of rows while the page cache is cold; {_mib(whole)} of page cache hold them all"
    )
    return ReadReport(used, touched, whole, text)


def _touched_bytes(block: Block) -> int:
    """Bytes of the pages that a block's rows lie in, a page once for each of its rows."""
    begins, ends = (
        block.offset[:: block.streams],
        (block.offset + block.size)[block.streams - 1 :: block.streams],
    )
    pages = (ends - 1) // PAGE_BYTES - begins // PAGE_BYTES + 1
    return int(np.sum(pages)) * PAGE_BYTES


def _mib(size: int) -> str:
    return f"{size / _MIB:,.1f} MiB"

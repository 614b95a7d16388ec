"""The format of a segment, a file of signals that is only ever appended to, and what checks when it is read.

header   magic 8 | format version u32 | zeros 4 | context digest 32
records  key 16 | length u32 | crc32 u32 | payload           one after another
index    keys 16 × n, sorted | offsets u32 × n | lengths u32 × n
footer   n u64 | crc32 u32 | zeros 4 | magic 8

All numbers are little-endian. A record's checksum covers key, length and payload; the footer's covers
header, index and n. So an index is trusted as a whole or not at all, and a record is checked by itself,
when it is read or when a file without a footer is scanned. A change of 32 bits or fewer in a row never
passes CRC-32, anything else does once in 4e9.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

KEY_BYTES = 16
CONTEXT_BYTES = 32
KEY = np.dtype(f"S{KEY_BYTES}")  # compares all 16 bytes, as unsigned ones: zeros at the end only pad
MAX_SEGMENT_BYTES = 1 << 32  # an offset has 4 bytes, which saves 4 of 32 for every key in memory
_HEADER = struct.Struct(f"<8sI4x{CONTEXT_BYTES}s")
_RECORD = struct.Struct(f"<{KEY_BYTES}sII")
_FOOTER = struct.Struct("<QI4x8s")
_MAGIC, _END = b"ddsignal", b"ddsealed"
_VERSION = 1
_ENTRY_BYTES = KEY_BYTES + 4 + 4
HEADER_BYTES, RECORD_BYTES = _HEADER.size, _RECORD.size


class DamagedSegment(Exception):
    """The file is no segment, or not sealed, or its index does not check; the message says which."""


class OtherFormat(DamagedSegment):
    """Another version of this program wrote it, which can read it."""


@dataclass(frozen=True)
class SegmentIndex:
    """Where the records of a sealed segment lie: n of each, sorted by key, which may repeat."""

    context: bytes
    keys: np.ndarray  # KEY
    offsets: np.ndarray  # uint32, bytes from the file's beginning to the record's
    lengths: np.ndarray  # uint32, bytes of the payload


def header(context: bytes) -> bytes:
    """The first ``HEADER_BYTES`` bytes of a segment."""
    assert len(context) == CONTEXT_BYTES, context
    return _HEADER.pack(_MAGIC, _VERSION, context)


def record_head(key: bytes, payload: bytes) -> bytes:
    """The ``RECORD_BYTES`` bytes that stand before the payload."""
    assert len(key) == KEY_BYTES, key
    return _RECORD.pack(key, len(payload), _record_crc(key, payload))


def index_bytes(num_records: int) -> int:
    """Bytes of the index and footer of that many records."""
    return _ENTRY_BYTES * num_records + _FOOTER.size


def seal(context: bytes, keys: Sequence[bytes], offsets: Sequence[int], lengths: Sequence[int]) -> bytes:
    """Index and footer of records in any order; ``offsets`` and ``lengths`` as in SegmentIndex."""
    of_key = np.frombuffer(b"".join(keys), KEY)
    order = np.argsort(of_key, kind="stable")
    columns = [np.array(values, "<u4")[order] for values in (offsets, lengths)]
    index = b"".join([of_key[order].tobytes(), *(column.tobytes() for column in columns)])
    return index + _FOOTER.pack(len(keys), _index_crc(header(context), index, len(keys)), _END)


def read_context(descriptor: int) -> bytes:
    """The context digest in a file's header, unchecked; DamagedSegment if it has none, or OSError."""
    content = os.pread(descriptor, HEADER_BYTES, 0)
    if len(content) < HEADER_BYTES:
        raise DamagedSegment("it is shorter than a header")
    magic, version, context = _HEADER.unpack(content)
    if magic != _MAGIC:
        raise DamagedSegment("it does not begin as a segment")
    if version != _VERSION:
        raise OtherFormat(f"its format is {version}, this program reads {_VERSION}")
    assert isinstance(context, bytes)
    return context


def read_index(descriptor: int) -> SegmentIndex:
    """The index of a sealed segment, without reading a record; DamagedSegment or OSError."""
    context = read_context(descriptor)
    size = os.fstat(descriptor).st_size
    if size < HEADER_BYTES + _FOOTER.size:
        raise DamagedSegment("it has no footer")
    footer = os.pread(descriptor, _FOOTER.size, size - _FOOTER.size)
    if len(footer) < _FOOTER.size or not footer.endswith(_END):
        raise DamagedSegment("it has no footer")
    number, crc, _ = _FOOTER.unpack(footer)
    start = size - index_bytes(number)
    if number == 0 or start < HEADER_BYTES:
        raise DamagedSegment(f"its footer counts {number} records, which it cannot hold")
    # not mapped: another host may remove the file, and a network disk then answers a touch of the map with
    # SIGBUS
    index = _read_all(descriptor, start, _ENTRY_BYTES * number)
    if _index_crc(header(context), index, number) != crc:
        raise DamagedSegment("its index does not have its checksum")
    return SegmentIndex(
        context,
        keys=np.frombuffer(index, KEY, number),
        offsets=np.frombuffer(index, "<u4", number, KEY_BYTES * number),
        lengths=np.frombuffer(index, "<u4", number, (KEY_BYTES + 4) * number),
    )


def read_payload(descriptor: int, key: bytes, offset: int, length: int) -> bytes | None:
    """The payload of the record at ``offset``; None if it is not ``key``'s, or damaged; or OSError."""
    content = _read_all(descriptor, offset, RECORD_BYTES + length)
    if len(content) < RECORD_BYTES + length:
        return None
    payload = content[RECORD_BYTES:]
    return payload if content[:RECORD_BYTES] == record_head(key, payload) else None


def scan(descriptor: int) -> Iterator[tuple[bytes, bytes]]:
    """Key and payload of each record of a file, sealed or not, up to the first that does not check.

    OSError if it is unreadable.
    """
    size = os.fstat(descriptor).st_size
    offset = HEADER_BYTES
    while offset + RECORD_BYTES <= size:
        head = _read_all(descriptor, offset, RECORD_BYTES)
        if len(head) < RECORD_BYTES:
            return
        key, length, _ = _RECORD.unpack(head)
        if offset + RECORD_BYTES + length > size:  # before 4 GiB are asked for because of a damaged length
            return
        payload = read_payload(descriptor, key, offset, length)
        if payload is None:
            return
        yield key, payload
        offset += RECORD_BYTES + length


def _record_crc(key: bytes, payload: bytes) -> int:
    return zlib.crc32(payload, zlib.crc32(struct.pack("<I", len(payload)), zlib.crc32(key)))


def _index_crc(head: bytes, index: bytes, number: int) -> int:
    return zlib.crc32(struct.pack("<Q", number), zlib.crc32(index, zlib.crc32(head)))


def _read_all(descriptor: int, offset: int, size: int) -> bytes:
    """``size`` bytes, fewer at the file's end: one call of the system gives 2 GiB at most."""
    content = os.pread(descriptor, size, offset)
    while len(content) < size and (more := os.pread(descriptor, size - len(content), offset + len(content))):
        content += more
    return content

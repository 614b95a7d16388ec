"""The format: what was written comes back, and whatever happens to the file, nothing wrong does."""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from distill_dist.teacher.segment import (
    HEADER_BYTES,
    KEY,
    RECORD_BYTES,
    DamagedSegment,
    header,
    index_bytes,
    read_context,
    read_index,
    read_payload,
    record_head,
    scan,
    seal,
)
from teacher.cache_cases import CONTEXT, key, row, write_segment

# sorting must compare all 16 bytes as unsigned ones; numpy's strings drop zeros at their end
AWKWARD = [
    bytes(16),
    bytes(15) + b"\x01",
    b"\x01" + bytes(15),
    b"a\0b" + bytes(13),
    b"a\0c" + bytes(13),
    b"\xff" * 16,
]


@pytest.fixture
def memory() -> Iterator[int]:
    """A file in memory: tens of thousands of them are written here."""
    descriptor = os.memfd_create("segment")
    yield descriptor
    os.close(descriptor)


def fill(descriptor: int, content: bytes) -> None:
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, content, 0)


def everything(descriptor: int) -> dict[bytes, bytes | None]:
    """What the index leads to; None where the record is damaged."""
    index = read_index(descriptor)
    found = zip(full_keys(index.keys), index.offsets.tolist(), index.lengths.tolist(), strict=True)
    return {k: read_payload(descriptor, k, offset, length) for k, offset, length in found}


def full_keys(keys: np.ndarray) -> list[bytes]:
    return [k.ljust(16, b"\0") for k in keys.tolist()]


def test_records_come_back_from_the_index(tmp_path: Path, memory: int) -> None:
    content = write_segment(tmp_path, range(50)).read_bytes()
    fill(memory, content)
    assert everything(memory) == {key(i): row(i) for i in range(50)}
    assert list(scan(memory)) == [(key(i), row(i)) for i in range(50)]
    index = read_index(memory)
    assert index.context == CONTEXT
    assert (index.keys[:-1] < index.keys[1:]).all()
    records = sum(RECORD_BYTES + len(row(i)) for i in range(50))
    assert len(content) == HEADER_BYTES + records + index_bytes(50)


def test_keys_with_zeros_and_large_bytes(memory: int) -> None:
    content, offsets = header(CONTEXT), []
    for i, k in enumerate(AWKWARD[::-1]):
        offsets.append(len(content))
        content += record_head(k, row(i)) + row(i)
    fill(memory, content + seal(CONTEXT, AWKWARD[::-1], offsets, [len(row(i)) for i in range(6)]))
    assert everything(memory) == {k: row(i) for i, k in enumerate(AWKWARD[::-1])}
    keys = read_index(memory).keys
    assert full_keys(keys) == sorted(AWKWARD)
    np.testing.assert_array_equal(np.searchsorted(keys, np.frombuffer(b"".join(AWKWARD), KEY)), np.arange(6))


def test_a_record_of_another_key_is_no_answer(tmp_path: Path, memory: int) -> None:
    fill(memory, write_segment(tmp_path, [1, 6]).read_bytes())
    length = len(row(1))
    assert read_payload(memory, key(1), HEADER_BYTES, length) == row(1)
    assert read_payload(memory, key(6), HEADER_BYTES, length) is None
    assert read_payload(memory, key(1), HEADER_BYTES, length - 1) is None
    assert read_payload(memory, key(1), HEADER_BYTES + 1, length) is None
    assert read_payload(memory, key(1), 1 << 30, length) is None


def outcome(descriptor: int, expected: dict[bytes, bytes]) -> str:
    """Read all rows of a changed segment: "right", "missed" some, or "ignored"; a wrong payload fails."""
    with suppress(DamagedSegment):
        read_context(descriptor)
        assert all(expected[k] == payload for k, payload in scan(descriptor))
    try:
        found = everything(descriptor)
    except DamagedSegment:
        return "ignored"
    assert found.keys() == expected.keys()
    assert all(found[k] in (expected[k], None) for k in found)
    return "missed" if None in found.values() else "right"


def test_every_flip_of_every_byte_is_seen(tmp_path: Path, memory: int) -> None:
    """All 255 other values of each byte."""
    numbers = (1, 5)  # of 17 and 2 bytes
    expected = {key(i): row(i) for i in numbers}
    content = write_segment(tmp_path, numbers).read_bytes()
    fill(memory, content)
    index, end = len(content) - index_bytes(len(numbers)), len(content)
    spare = {*range(12, 16), *range(end - 12, end - 8)}  # zeros that say nothing
    for at, value in enumerate(content):
        should = "right" if at in spare else "missed" if HEADER_BYTES <= at < index else "ignored"
        for flip in range(1, 256):
            os.pwrite(memory, bytes([value ^ flip]), at)
            assert outcome(memory, expected) == should, (at, flip)
        os.pwrite(memory, bytes([value]), at)
    assert outcome(memory, expected) == "right"


def test_every_truncation_is_seen(tmp_path: Path, memory: int) -> None:
    expected = {key(i): row(i) for i in range(6)}
    content = write_segment(tmp_path, range(6)).read_bytes()
    fill(memory, content)
    assert outcome(memory, expected) == "right"
    for length in range(len(content)):
        fill(memory, content[:length])
        assert outcome(memory, expected) == "ignored", length
        os.ftruncate(memory, len(content))  # zeros at the end, as a machine that dies may leave it
        assert outcome(memory, expected) == "ignored", length
    for more in (b"\0", b"x" * 100, content[-24:]):
        fill(memory, content + more)
        assert outcome(memory, expected) == "ignored"


def test_a_scan_ends_before_the_first_torn_record(tmp_path: Path, memory: int) -> None:
    content = write_segment(tmp_path, range(8)).read_bytes()
    ends = np.cumsum([RECORD_BYTES + len(row(i)) for i in range(8)]) + HEADER_BYTES
    for length in range(HEADER_BYTES, len(content)):
        whole = [(key(i), row(i)) for i in range(8) if ends[i] <= length]
        fill(memory, content[:length])
        assert list(scan(memory)) == whole
        for tail in (bytes(200), b"\xff" * 200):
            # the tail may happen to be the bytes that were cut
            fill(memory, content[:length] + tail)
            assert list(scan(memory))[: len(whole)] == whole
            assert set(scan(memory)) <= {(key(i), row(i)) for i in range(8)}


def test_zeros_are_no_record(memory: int) -> None:
    fill(memory, header(CONTEXT) + bytes(1000))
    assert list(scan(memory)) == []
    assert zlib.crc32(bytes(20)) != 0, "the reason"


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "shorter than a header"),
        (b"x" * 100, "does not begin as a segment"),
        (header(CONTEXT)[:8] + b"\x02" + header(CONTEXT)[9:], "its format is 2, this program reads 1"),
        (header(CONTEXT), "has no footer"),
        (header(CONTEXT) + bytes(100), "has no footer"),
        (header(CONTEXT) + seal(CONTEXT, [], [], []), "counts 0 records"),
        (header(bytes(32)) + seal(CONTEXT, [key(0)], [0], [0]), "index does not have its checksum"),
    ],
)
def test_what_is_no_segment_is_named(memory: int, content: bytes, problem: str) -> None:
    fill(memory, content)
    with pytest.raises(DamagedSegment, match=problem):
        read_index(memory)

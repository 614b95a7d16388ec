"""Keys and rows for the tests of the signal cache: row i is a function of key i."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable
from pathlib import Path

import pytest

from distill_dist.teacher.segment_writer import SegmentWriter

CONTEXT = bytes(range(32))


def key(i: int) -> bytes:
    """16 bytes, spread over all values."""
    return hashlib.md5(str(i).encode()).digest()


def row(i: int) -> bytes:
    """0 to 66 bytes."""
    return key(i) * (i % 5) + b"!" * (i % 3)


def keys(numbers: Iterable[int]) -> list[bytes]:
    return [key(i) for i in numbers]


def rows(numbers: Iterable[int]) -> list[bytes]:
    return [row(i) for i in numbers]


def write_segment(folder: Path, numbers: Iterable[int], *, context: bytes = CONTEXT) -> Path:
    """A sealed segment with these rows."""
    folder.mkdir(exist_ok=True)
    writer = SegmentWriter(folder, context)
    for i in numbers:
        writer.append(key(i), row(i))
    sealed = writer.seal()
    writer.close()
    assert sealed is not None
    return sealed


def leave_open(folder: Path, numbers: Iterable[int]) -> Path:
    """What a writer leaves that dies."""
    folder.mkdir(exist_ok=True)
    writer = SegmentWriter(folder, CONTEXT)
    for i in numbers:
        writer.append(key(i), row(i))
    writer.close()
    (path,) = folder.glob("*.open")
    return path


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]

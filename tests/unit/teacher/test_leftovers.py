"""What dead writers left is saved, what living ones write left alone, and mistaking one is harmless."""

from __future__ import annotations

import errno
import logging
import os
import time
from pathlib import Path

import pytest

from distill_dist.teacher import leftovers, segment_writer
from distill_dist.teacher.leftovers import QUIET_S, recover
from distill_dist.teacher.segment import HEADER_BYTES, read_index, scan
from distill_dist.teacher.segment_writer import SegmentWriter
from teacher.cache_cases import CONTEXT, key, leave_open, row, warnings, write_segment


def sealed_rows(folder: Path) -> dict[bytes, bytes]:
    found: dict[bytes, bytes] = {}
    for path in folder.glob("*.seg"):
        descriptor = os.open(path, os.O_RDONLY)
        index = read_index(descriptor)
        assert index.context == CONTEXT
        found |= dict(scan(descriptor))
        assert len(index.keys) <= len(found)
        os.close(descriptor)
    return found


def of_another_host(path: Path) -> Path:
    return path.rename(path.with_name(path.name.replace(segment_writer.host_name(), "far")))


def make_old(path: Path, age_s: float) -> None:
    os.utime(path, (time.time() - age_s,) * 2)


def test_a_dead_writer_loses_nothing_that_it_wrote(tmp_path: Path) -> None:
    leave_open(tmp_path, range(10))
    assert recover(tmp_path) == 10
    assert sealed_rows(tmp_path) == {key(i): row(i) for i in range(10)}
    assert [path.suffix for path in tmp_path.iterdir()] == [".seg"]
    assert recover(tmp_path) == 0


def test_what_nobody_vouches_for_is_no_leftover_to_save(tmp_path: Path) -> None:
    """A host's teacher may have drifted before it was asked, and its host died."""
    living, dead = (SegmentWriter(tmp_path, CONTEXT, is_checked=False) for _ in range(2))
    for writer in (living, dead):
        writer.append(key(1), row(1))
    dead.close()
    assert recover(tmp_path) == 0
    assert [path.suffix for path in tmp_path.iterdir()] == [".unchecked"]
    living.seal()
    assert [path.suffix for path in tmp_path.iterdir()] == [".seg"]
    assert sealed_rows(tmp_path) == {key(1): row(1)}


def test_records_before_the_first_torn_one_are_saved(tmp_path: Path) -> None:
    whole = leave_open(tmp_path / "whole", range(3)).read_bytes()
    counts = []
    for length in range(len(whole)):
        folder = tmp_path / str(length)
        path = leave_open(folder, [])
        path.write_bytes(whole[:length])
        counts.append(recover(folder))
        assert list(folder.glob("*.open")) == []
        found = sealed_rows(folder)
        assert found == {key(i): row(i) for i in range(counts[-1])}
        assert len(list(folder.iterdir())) == (counts[-1] > 0)
    assert counts == sorted(counts)
    assert set(counts) == set(range(3))


def test_one_that_died_between_index_and_rename_is_saved_too(tmp_path: Path) -> None:
    sealed = write_segment(tmp_path, range(5))
    sealed.rename(sealed.with_suffix(".open"))
    assert recover(tmp_path) == 5
    assert sealed_rows(tmp_path) == {key(i): row(i) for i in range(5)}


def test_a_living_writer_is_left_alone_however_old(tmp_path: Path) -> None:
    writer = SegmentWriter(tmp_path, CONTEXT)
    writer.append(key(1), row(1))
    (path,) = tmp_path.iterdir()
    make_old(path, 10 * QUIET_S)
    assert recover(tmp_path) == 0
    assert path.exists()
    of_another_host(path)
    assert recover(tmp_path) == 0
    writer.close()
    (path,) = tmp_path.glob("*far*")
    make_old(path, 10 * QUIET_S)
    assert recover(tmp_path) == 1


def test_a_lock_that_is_free_proves_nothing_of_another_host(tmp_path: Path) -> None:
    path = of_another_host(leave_open(tmp_path, range(3)))
    assert recover(tmp_path) == 0
    make_old(path, QUIET_S - 60)
    assert recover(tmp_path) == 0
    make_old(path, QUIET_S + 60)
    assert recover(tmp_path) == 3


def test_without_locks_only_age_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", refuse)
    path = leave_open(tmp_path, range(3))
    assert recover(tmp_path) == 0
    make_old(path, QUIET_S + 60)
    assert recover(tmp_path) == 3


def test_a_writer_taken_for_dead_goes_on_and_nothing_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = SegmentWriter(tmp_path, CONTEXT)
    writer.append(key(1), row(1))
    monkeypatch.setattr(leftovers, "lock", lambda descriptor: True)
    assert recover(tmp_path) == 1
    writer.append(key(2), row(2))
    assert writer.read(key(2)) == row(2)
    assert writer.seal() is None
    writer.close()
    assert sealed_rows(tmp_path) == {key(1): row(1)}
    assert [path.suffix for path in tmp_path.iterdir()] == [".seg"]


def test_a_disk_too_full_to_save_keeps_what_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = leave_open(tmp_path, range(6))

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        recover(tmp_path)
    assert list(tmp_path.iterdir()) == [path]
    monkeypatch.undo()
    assert recover(tmp_path) == 6


def test_what_is_no_leftover_of_ours_stays(tmp_path: Path) -> None:
    (tmp_path / "notes.open").write_bytes(b"")
    (tmp_path / f"signals-{segment_writer.host_name()}-{'0' * 16}.seg").write_bytes(b"x")
    (tmp_path / f"signals-{segment_writer.host_name()}-{'0' * 16}.open").mkdir()
    assert recover(tmp_path) == 0
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize("content", [b"", b"ddsignal", bytes(HEADER_BYTES)])
def test_one_that_died_before_its_first_record_goes_quietly(
    tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    leave_open(tmp_path, []).write_bytes(content)
    assert recover(tmp_path) == 0
    assert list(tmp_path.iterdir()) == []
    assert warnings(caplog) == []


def test_one_that_cannot_be_understood_goes_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = leave_open(tmp_path, range(3))
    path.write_bytes(bytes(HEADER_BYTES) + path.read_bytes()[HEADER_BYTES:])
    with caplog.at_level(logging.WARNING):
        assert recover(tmp_path) == 0
    assert list(tmp_path.iterdir()) == []
    assert warnings(caplog) == [
        f"signals left by a dead process in {path} are lost: it does not begin as a segment"
    ]


def test_one_of_another_version_stays_for_that(tmp_path: Path) -> None:
    path = leave_open(tmp_path, range(3))
    content = bytearray(path.read_bytes())
    content[8] += 1
    path.write_bytes(content)
    assert recover(tmp_path) == 0
    assert list(tmp_path.iterdir()) == [path]


def test_one_that_vanishes_meanwhile_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = leave_open(tmp_path, range(3))
    monkeypatch.setattr(leftovers, "lock", lambda descriptor: path.unlink() or True)
    assert recover(tmp_path) == 0
    assert list(tmp_path.iterdir()) == []

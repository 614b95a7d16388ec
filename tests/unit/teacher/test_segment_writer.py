"""One segment as it is written: readable at once, seen by others once sealed, never half there."""

from __future__ import annotations

import errno
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from distill_dist.teacher import segment_writer
from distill_dist.teacher.segment import HEADER_BYTES, read_index, scan
from distill_dist.teacher.segment_writer import SegmentWriter, host_name, host_of, lock
from teacher.cache_cases import CONTEXT, key, row


def names(folder: Path) -> list[str]:
    return sorted(path.suffix for path in folder.iterdir())


def records(path: Path) -> list[tuple[bytes, bytes]]:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return list(scan(descriptor))
    finally:
        os.close(descriptor)


def test_it_is_read_while_it_is_open_and_sealed_under_its_name(tmp_path: Path) -> None:
    writer = SegmentWriter(tmp_path, CONTEXT)
    for i in range(20):
        writer.append(key(i), row(i))
        assert writer.read(key(i)) == row(i)
        assert writer.read(key(i + 1)) is None
    assert (len(writer), key(3) in writer, key(20) in writer) == (20, True, False)
    assert names(tmp_path) == [".open"]
    (path,) = tmp_path.iterdir()
    assert writer.bytes == path.stat().st_size
    sealed = writer.seal()
    assert sealed == path.with_suffix(".seg")
    assert names(tmp_path) == [".seg"]
    assert writer.read(key(7)) == row(7)
    assert writer.bytes == sealed.stat().st_size
    writer.close()
    writer.close()
    assert writer.read(key(7)) is None
    assert records(sealed) == [(key(i), row(i)) for i in range(20)]


def test_an_empty_one_leaves_nothing(tmp_path: Path) -> None:
    writer = SegmentWriter(tmp_path, CONTEXT)
    assert names(tmp_path) == [".open"]
    assert writer.seal() is None
    writer.close()
    assert names(tmp_path) == []


def test_names_differ_and_tell_the_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: "node-1.rack_2/x")
    writers = [SegmentWriter(tmp_path, CONTEXT) for _ in range(3)]
    found = [path for path in tmp_path.iterdir() if re.fullmatch(r"signals-.*-[0-9a-f]{16}\.open", path.name)]
    assert len(found) == 3
    assert {host_of(path) for path in found} == {host_name()} == {"node-1.rack-2-x"}
    assert host_of(tmp_path / "signals-x.open") is None
    for writer in writers:
        writer.close()


def test_synced_before_it_is_moved_and_the_folder_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = SegmentWriter(tmp_path, CONTEXT)
    writer.append(key(0), row(0))
    done: list[str] = []

    def sync(descriptor: int) -> None:
        index_is_there = len(read_index(descriptor).keys) == 1
        done.append(f"sync of {names(tmp_path)} with index {index_is_there}")

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(
        segment_writer, "sync_folder", lambda folder: done.append(f"folder with {names(folder)}")
    )
    writer.seal()
    writer.close()
    assert done == ["sync of ['.open'] with index True", "folder with ['.seg']"]


def test_what_a_full_disk_took_of_a_record_is_cut_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = SegmentWriter(tmp_path, CONTEXT)
    writer.append(key(1), row(1))
    size = writer.bytes
    original, calls = os.pwritev, []

    def short_then_full(descriptor: int, parts: list[Any], offset: int) -> int:
        calls.append(offset)
        if len(calls) == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        return original(descriptor, [bytes(parts[0])[:10]], offset)

    monkeypatch.setattr(os, "pwritev", short_then_full)
    with pytest.raises(OSError, match="No space"):
        writer.append(key(3), row(3))
    assert calls == [size, size + 10, size + 20]
    monkeypatch.undo()
    (path,) = tmp_path.iterdir()
    assert path.stat().st_size == writer.bytes == size
    assert writer.read(key(3)) is None
    writer.append(key(4), row(4))
    assert records(path) == [(key(1), row(1)), (key(4), row(4))]
    writer.close()


def test_short_writes_are_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = os.pwritev
    monkeypatch.setattr(os, "pwritev", lambda d, parts, offset: original(d, [bytes(parts[0])[:7]], offset))
    writer = SegmentWriter(tmp_path, CONTEXT)
    for i in range(6):
        writer.append(key(i), row(i))
    sealed = writer.seal()
    writer.close()
    assert sealed is not None
    assert records(sealed) == [(key(i), row(i)) for i in range(6)]


def test_no_room_for_the_header_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    before = len(os.listdir("/proc/self/fd"))
    monkeypatch.setattr(os, "pwritev", full)
    with pytest.raises(OSError, match="No space"):
        SegmentWriter(tmp_path, CONTEXT)
    assert names(tmp_path) == []
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_file_taken_over_is_noticed_when_sealing(tmp_path: Path) -> None:
    writer = SegmentWriter(tmp_path, CONTEXT)
    writer.append(key(1), row(1))
    (path,) = tmp_path.iterdir()
    path.unlink()
    assert writer.seal() is None
    writer.close()
    assert names(tmp_path) == []


def test_a_file_taken_before_its_lock_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def taken(descriptor: int) -> bool | None:
        if len(seen) < 2:
            seen.append(os.readlink(f"/proc/self/fd/{descriptor}"))
            if len(seen) == 1:
                return False  # held by who looks for leftovers
            os.unlink(seen[1])  # which is who removed it since
        return lock(descriptor)

    seen: list[str] = []
    monkeypatch.setattr(segment_writer, "lock", taken)
    writer = SegmentWriter(tmp_path, CONTEXT)
    writer.append(key(1), row(1))
    sealed = writer.seal()
    writer.close()
    assert sealed is not None
    assert len({str(sealed.with_suffix(".open")), *seen}) == 3
    assert sealed.stat().st_size > HEADER_BYTES


@pytest.mark.parametrize("same_process", [True, False])
def test_the_lock_lasts_until_it_is_closed(tmp_path: Path, same_process: bool) -> None:
    writer = SegmentWriter(tmp_path, CONTEXT)
    (path,) = tmp_path.iterdir()

    def is_free() -> bool | None:
        if same_process:
            descriptor = os.open(path, os.O_RDWR)
            try:
                return lock(descriptor)
            finally:
                os.close(descriptor)
        program = (
            "import os, sys; from distill_dist.teacher.segment_writer import lock;"
            "print(lock(os.open(sys.argv[1], os.O_RDWR)))"
        )
        done = subprocess.run(
            [sys.executable, "-c", program, path], capture_output=True, text=True, check=True
        )
        return {"True": True, "False": False}[done.stdout.strip()]

    assert is_free() is False
    assert is_free() is False, "looking does not take it away"
    writer.close()
    assert is_free() is True


@pytest.mark.parametrize(
    ("number", "expected"),
    [(errno.EAGAIN, False), (errno.EACCES, False), (errno.ENOLCK, None), (errno.ENOSYS, None)],
)
def test_a_file_system_without_locks_says_neither(
    monkeypatch: pytest.MonkeyPatch, number: int, expected: bool | None
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.flock", refuse)
    assert lock(0) is expected

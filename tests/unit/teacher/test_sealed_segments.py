"""Sealed segments as they are read: new ones appear, removed ones vanish, damage is a miss and warned of."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from distill_dist.teacher import sealed_segments
from distill_dist.teacher.sealed_segments import SealedSegments
from distill_dist.teacher.segment import HEADER_BYTES, RECORD_BYTES, index_bytes
from teacher.cache_cases import key, keys, leave_open, row, rows, warnings, write_segment


def reader(folder: Path, refresh_every_s: float = 1e9) -> SealedSegments:
    found = SealedSegments(folder, refresh_every_s=refresh_every_s)
    found.refresh(force=True)
    return found


def flip(path: Path, at: int) -> None:
    with path.open("rb+") as file:
        file.seek(at)
        (value,) = file.read(1)
        file.seek(at)
        file.write(bytes([value ^ 4]))


def test_rows_of_several_segments(tmp_path: Path) -> None:
    paths = [write_segment(tmp_path, numbers) for numbers in (range(10), range(8, 20), [30])]
    leave_open(tmp_path, [40])
    segments = reader(tmp_path)
    assert segments.get_many(keys(range(20))) == rows(range(20))
    assert segments.get_many(keys([30, 25, 40, 30])) == [row(30), None, None, row(30)]
    assert segments.get_many([]) == []
    assert segments.bytes == sum(path.stat().st_size for path in paths)
    assert (segments.damaged, segments.lost) == (0, 0)
    segments.close()
    assert segments.get_many(keys([30])) == [row(30)]


def test_new_ones_are_seen_when_told_or_after_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1000.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    segments = SealedSegments(tmp_path, refresh_every_s=5)
    write_segment(tmp_path, [1])
    segments.refresh()
    assert segments.get_many(keys([1])) == [row(1)]
    write_segment(tmp_path, [2])
    now[0] += 4.9
    segments.refresh()
    assert segments.get_many(keys([2])) == [None]
    now[0] += 0.2
    segments.refresh()
    assert segments.get_many(keys([2])) == [row(2)]
    write_segment(tmp_path, [3])
    segments.refresh(force=True)
    assert segments.get_many(keys([1, 2, 3])) == rows([1, 2, 3])
    assert segments.bytes == sum(path.stat().st_size for path in tmp_path.iterdir())


def test_one_that_is_known_is_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_segment(tmp_path, [1])
    bad = tmp_path / "bad.seg"
    bad.write_bytes(b"x")
    segments = reader(tmp_path)
    opened: list[str] = []
    original = os.open
    monkeypatch.setattr(sealed_segments, "_modified_ns", lambda entry: opened.append(entry.name) or 0)
    monkeypatch.setattr(os, "open", lambda path, *rest: opened.append(str(path)) or original(path, *rest))
    segments.refresh(force=True)
    assert opened == []
    new = write_segment(tmp_path, [2])
    opened.clear()
    segments.adopt(new)
    assert opened == [str(new)]
    segments.adopt(new)
    segments.refresh(force=True)
    assert opened == [str(new)]
    assert len(segments) == 2


def test_a_newer_record_wins(tmp_path: Path) -> None:
    """Both are right; but a damaged one was computed and written again."""
    old = write_segment(tmp_path, [1])
    segments = reader(tmp_path)
    flip(old, HEADER_BYTES + RECORD_BYTES)
    assert segments.get_many(keys([1])) == [None]
    write_segment(tmp_path, [1])
    segments.refresh(force=True)
    assert segments.get_many(keys([1])) == [row(1)]
    os.utime(old, (1, 1))
    fresh = reader(tmp_path)
    assert fresh.get_many(keys([1])) == [row(1)], "by the time of writing, whatever the names"
    for path in tmp_path.iterdir():
        os.utime(path, (2, 2) if path == old else (1, 1))
    assert reader(tmp_path).get_many(keys([1])) == [None], "or the test would not see the order"


def test_damage_is_a_miss_with_one_warning_for_a_segment(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_segment(tmp_path, [1, 2, 3])
    segments = reader(tmp_path)
    flip(path, HEADER_BYTES + 3)
    flip(path, HEADER_BYTES + RECORD_BYTES + len(row(1)) + 20)
    for _ in range(2):
        assert segments.get_many(keys([1, 2, 3])) == [None, None, row(3)]
    assert (segments.damaged, segments.lost) == (4, 0)
    assert warnings(caplog) == [f"cached signals: {path} has damaged signals, which are computed again"]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda path: flip(path, path.stat().st_size - 30), "its index does not have its checksum"),
        (lambda path: os.truncate(path, path.stat().st_size - 1), "it has no footer"),
        (lambda path: os.truncate(path, 0), "it is shorter than a header"),
        (lambda path: flip(path, 8), "its format is 5, this program reads 1"),
        (lambda path: (path.unlink(), path.mkdir()), "Is a directory"),
    ],
)
def test_a_segment_without_its_index_is_ignored_with_one_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, change: Callable[[Path], object], problem: str
) -> None:
    bad = write_segment(tmp_path, [1, 2])
    good = write_segment(tmp_path, [3])
    change(bad)
    segments = reader(tmp_path)
    for _ in range(2):
        segments.refresh(force=True)
        assert segments.get_many(keys([1, 2, 3])) == [None, None, row(3)]
    assert (segments.damaged, segments.lost, segments.bytes) == (0, 1, good.stat().st_size)
    (warning,) = warnings(caplog)
    assert warning.startswith(f"cached signals: {bad} is ignored: ")
    assert problem in warning


def test_every_flip_and_truncation_is_a_miss_or_right(tmp_path: Path) -> None:
    """The whole way from the folder; all values of a byte: test_segment.py."""
    numbers, path = range(3), write_segment(tmp_path, range(3))
    content = path.read_bytes()
    seen = set()
    for at in range(len(content)):
        flip(path, at)
        segments = reader(tmp_path)
        found = segments.get_many(keys(numbers))
        flip(path, at)
        assert all(payload in (row(i), None) for i, payload in zip(numbers, found, strict=True)), at
        seen.add((found.count(None), segments.damaged, segments.lost))
    assert seen == {(0, 0, 0), (1, 1, 0), (3, 0, 1)}
    assert path.read_bytes() == content
    for length in reversed(range(len(content))):
        os.truncate(path, length)
        segments = reader(tmp_path)
        assert segments.get_many(keys(numbers)) == [None] * 3
        assert segments.lost == 1


def test_cut_short_while_in_use_is_a_miss(tmp_path: Path) -> None:
    """Every length that it may be cut to, behind the reader's back."""
    path = write_segment(tmp_path, range(4))
    content = path.read_bytes()
    segments = reader(tmp_path)
    for length in reversed(range(len(content))):
        os.truncate(path, length)
        found = segments.get_many(keys(range(4)))
        assert all(payload in (row(i), None) for i, payload in enumerate(found))
        if length >= len(content) - index_bytes(4):
            assert None not in found, "records are read without the index"
    assert found == [None] * 4


@pytest.mark.parametrize("is_open", [True, False])
def test_removed_by_another_job(tmp_path: Path, caplog: pytest.LogCaptureFixture, is_open: bool) -> None:
    gone, stays = write_segment(tmp_path, range(5)), write_segment(tmp_path, [7])
    segments = reader(tmp_path)
    if is_open:
        assert segments.get_many(keys([1])) == [row(1)]
    before = len(os.listdir("/proc/self/fd"))
    gone.unlink()
    assert segments.get_many(keys([1, 7])) == ([row(1), row(7)] if is_open else [None, row(7)])
    segments.refresh(force=True)
    assert segments.get_many(keys([1, 7])) == [None, row(7)]
    assert (len(segments), segments.bytes) == (1, stays.stat().st_size)
    assert len(os.listdir("/proc/self/fd")) == before + (0 if is_open else 1), (
        "closed what is gone, opened what stays"
    )
    stays.unlink()
    tmp_path.rmdir()
    segments.refresh(force=True)
    assert segments.get_many(keys([1, 7])) == [None, None]
    assert (segments.damaged, segments.lost, warnings(caplog)) == (0, 0, [])


def test_removed_between_listing_and_opening(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone, stays = write_segment(tmp_path, [1]), write_segment(tmp_path, [2])
    original = os.open

    def remove_first(path: Path, *rest: int) -> int:
        gone.unlink(missing_ok=True)
        return original(path, *rest)

    monkeypatch.setattr(os, "open", remove_first)
    segments = reader(tmp_path)
    assert stays.exists()
    assert segments.get_many(keys([1, 2])) == [None, row(2)]
    assert segments.lost == 0


@pytest.mark.parametrize(("number", "damaged"), [(errno.EIO, 2), (errno.ESTALE, 0)])
def test_a_disk_that_fails_is_a_miss(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    number: int,
    damaged: int,
) -> None:
    def fail(*_: int) -> bytes:
        raise OSError(number, os.strerror(number))

    path = write_segment(tmp_path, [1])
    segments = reader(tmp_path)
    before = len(os.listdir("/proc/self/fd"))
    with monkeypatch.context() as patch:
        patch.setattr(os, "pread", fail)
        assert segments.get_many(keys([1, 1])) == [None, None]
    assert len(os.listdir("/proc/self/fd")) == before, "a network disk may want the file opened again"
    assert segments.damaged == damaged
    assert warnings(caplog) == (
        [f"cached signals: {path} cannot be read: [Errno 5] Input/output error"] if damaged else []
    )
    assert segments.get_many(keys([1])) == [row(1)], "when the disk is back"


def test_few_files_stay_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sealed_segments, "MAX_OPEN", 3)
    for i in range(10):
        write_segment(tmp_path, [i])
    before = len(os.listdir("/proc/self/fd"))
    segments = reader(tmp_path)
    for _ in range(2):
        assert segments.get_many(keys(range(10))) == rows(range(10))
        assert len(os.listdir("/proc/self/fd")) == before + 3
    segments.close()
    assert len(os.listdir("/proc/self/fd")) == before


def test_threads_read_while_files_are_closed_and_segments_come_and_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sealed_segments, "MAX_OPEN", 2)
    for i in range(0, 40, 2):
        write_segment(tmp_path, [i, i + 1])
    segments, wrong, done = reader(tmp_path, 0.0), [], threading.Event()

    def read() -> None:
        while not done.is_set():
            for i, payload in enumerate(segments.get_many(keys(range(40)))):
                if payload != row(i):
                    wrong.append((i, payload))

    threads = [threading.Thread(target=read) for _ in range(3)]
    for thread in threads:
        thread.start()
    for turn in range(30):
        new = write_segment(tmp_path, [100 + turn])
        segments.refresh()
        new.unlink()
    done.set()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert (segments.damaged, segments.lost) == (0, 0)
    assert segments.get_many([key(0)]) == [row(0)]


def test_a_folder_that_cannot_be_listed_keeps_what_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    write_segment(tmp_path, [1])
    segments = reader(tmp_path)

    def fail(folder: Path) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "scandir", fail)
    segments.refresh(force=True)
    segments.refresh(force=True)
    assert segments.get_many(keys([1])) == [row(1)]
    assert warnings(caplog) == [f"cached signals: {tmp_path} cannot be listed: [Errno 5] Input/output error"]

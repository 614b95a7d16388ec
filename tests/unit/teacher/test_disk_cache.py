"""The disk part: when segments are sealed, what others see of them, and disks that cannot write."""

from __future__ import annotations

import errno
import os
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from small_disk import small_disk

from distill_dist.teacher import disk_cache
from distill_dist.teacher.disk_cache import DEFAULT_LIMITS, DiskCache, SealLimits
from distill_dist.teacher.leftovers import QUIET_S
from distill_dist.teacher.segment import MAX_SEGMENT_BYTES
from teacher.cache_cases import CONTEXT, key, keys, leave_open, row, rows, warnings, write_segment


def cache(folder: Path, *, limits: SealLimits = DEFAULT_LIMITS, max_bytes: int | None = None) -> DiskCache:
    return DiskCache(folder, context=CONTEXT, limits=limits, max_bytes=max_bytes, refresh_every_s=1e9)


def put(target: DiskCache, numbers: range | list[int]) -> None:
    target.put_many(keys(numbers), rows(numbers))


def suffixes(folder: Path) -> list[str]:
    return sorted(path.suffix for path in folder.iterdir())


def test_rows_are_there_at_once_and_after_a_restart(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    first = cache(folder)
    assert first.get_many(keys([1])) == [None]
    put(first, range(10))
    put(first, range(5, 15))
    assert first.get_many(keys(range(16))) == [*rows(range(15)), None]
    assert suffixes(folder) == [".open"]
    first.close()
    assert suffixes(folder) == [".seg"]
    assert first.get_many(keys(range(15))) == rows(range(15)), "reading goes on"
    put(first, [20])
    assert suffixes(folder) == [".seg"], "writing does not"
    assert first.counters() == {
        "disk_hits": 30,
        "damaged": 0,
        "lost_segments": 0,
        "written": 15,
        "disk_bytes": sum(path.stat().st_size for path in folder.iterdir()),
    }
    second = cache(folder)
    assert second.get_many(keys(range(15))) == rows(range(15))
    second.close()
    assert suffixes(folder) == [".seg"], "nothing written, nothing left"
    second.close()


def test_a_new_folder_has_its_name_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[Path] = []
    monkeypatch.setattr(disk_cache, "sync_folder", synced.append)
    cache(tmp_path / "new")
    cache(tmp_path / "new")
    assert synced == [tmp_path]


def test_a_segment_is_sealed_at_its_size(tmp_path: Path) -> None:
    target = cache(tmp_path, limits=SealLimits(bytes=500))
    for i in range(30):
        put(target, [i])
    target.close()
    sizes = [path.stat().st_size for path in tmp_path.glob("*.seg")]
    assert len(sizes) == 4
    assert (
        max(sizes) < 500 + 24 + 66 + 24 * 20 + 24
    )  # one record more than the limit, and an index of at most 20
    assert cache(tmp_path).get_many(keys(range(30))) == rows(range(30))


def test_a_segment_is_sealed_at_its_number_of_records(tmp_path: Path) -> None:
    target = cache(tmp_path, limits=SealLimits(records=4))
    put(target, range(11))
    assert suffixes(tmp_path) == [".open", ".seg", ".seg"]
    assert target.get_many(keys(range(11))) == rows(range(11))
    target.close()


@pytest.mark.parametrize("by", ["reading", "writing"])
def test_a_segment_is_sealed_at_its_age(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by: str) -> None:
    now = [1000.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    target = cache(tmp_path, limits=SealLimits(age_s=60))
    now[0] += 500
    put(target, [1])
    now[0] += 59
    put(target, [2])
    target.get_many(keys([1]))
    assert suffixes(tmp_path) == [".open"]
    now[0] += 2
    if by == "reading":
        assert target.get_many(keys([1])) == [row(1)]
    else:
        put(target, [3])
    assert suffixes(tmp_path) == [".seg"]
    target.close()


def test_a_row_that_is_larger_than_a_segment_is_not_kept(tmp_path: Path) -> None:
    target = cache(tmp_path, limits=SealLimits(bytes=300))
    target.put_many([key(0), key(1), key(2)], [b"x" * 301, b"y" * 300, b"z"])
    assert target.get_many(keys(range(3))) == [None, b"y" * 300, b"z"]
    assert target.counters()["written"] == 2
    target.close()


def test_limits_that_break_the_format_or_the_proof_of_death_are_ours_to_avoid() -> None:
    with pytest.raises(AssertionError):
        SealLimits(bytes=MAX_SEGMENT_BYTES // 2 + 1)
    with pytest.raises(AssertionError):
        SealLimits(age_s=QUIET_S / 2 + 1)


def test_who_vouches_for_the_rows_seals_them(tmp_path: Path) -> None:
    target = DiskCache(tmp_path, context=CONTEXT, limits=SealLimits(records=3), seals_itself=False)
    put(target, range(2))
    assert (target.has_open, target.is_due) == (True, False)
    put(target, range(2, 9))
    assert target.is_due
    assert suffixes(tmp_path) == [".unchecked"]
    target.seal()
    assert (target.has_open, target.is_due) == (False, False)
    assert suffixes(tmp_path) == [".seg"]
    put(target, range(9, 12))
    target.drop()
    assert suffixes(tmp_path) == [".seg"]
    assert target.counters()["written"] == 9
    assert target.get_many([key(8), key(9)]) == [row(8), None]
    put(target, range(9, 12))
    assert suffixes(tmp_path) == [".seg", ".unchecked"]


def test_what_nobody_vouched_for_is_not_there_after_a_death(tmp_path: Path) -> None:
    """What a host leaves that is killed: nobody can ask its teacher any more."""
    dead = DiskCache(tmp_path, context=CONTEXT, limits=DEFAULT_LIMITS, seals_itself=False)
    put(dead, range(3))
    assert dead._writer is not None
    dead._writer.close()
    assert cache(tmp_path).get_many(keys(range(3))) == [None] * 3
    assert suffixes(tmp_path) == []


def test_what_is_dropped_is_gone_also_when_nothing_can_be_written_any_more(tmp_path: Path) -> None:
    target = cache(tmp_path)
    put(target, range(5))
    target._stop("the disk is full")
    assert target.has_failed
    target.drop()
    target.close()
    assert suffixes(tmp_path) == []


def test_others_segments_are_found_and_leftovers_recovered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_segment(tmp_path, [1], context=bytes(32))
    leave_open(tmp_path, [2])
    target, now = cache(tmp_path), [0.0]
    assert target.get_many(keys([1, 2])) == rows([1, 2])
    assert suffixes(tmp_path) == [".seg", ".seg"]
    write_segment(tmp_path, [3])
    assert target.get_many(keys([3])) == [None]
    target.refresh()
    assert target.get_many(keys([3])) == [row(3)]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    target = cache(tmp_path)
    leave_open(tmp_path, [4])
    target.get_many(keys([4]))
    assert ".open" in suffixes(tmp_path)
    now[0] = QUIET_S + 1
    target.get_many(keys([4]))
    assert ".open" not in suffixes(tmp_path), "of a process that died since"
    target.refresh()
    assert target.get_many(keys([4])) == [row(4)]
    leave_open(tmp_path, [5])
    target.get_many(keys([5]))
    assert ".open" in suffixes(tmp_path), "not looked for every time"


def test_no_more_is_written_than_allowed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_segment(tmp_path, range(20))
    before = sum(path.stat().st_size for path in tmp_path.iterdir())
    target = cache(tmp_path, max_bytes=before + 500)
    for i in range(100, 200):
        put(target, [i])
    assert suffixes(tmp_path) == [".seg", ".seg"], "sealed, for others to see"
    written = target.counters()["written"]
    assert 2 < written < 20
    assert target.get_many(keys(range(100, 200))) == [
        *rows(range(100, 100 + written)),
        *[None] * (100 - written),
    ]
    (warning,) = warnings(caplog)
    assert f"no more signals are written to {tmp_path}" in warning
    assert f"it holds the {before + 500} bytes that it may" in warning
    target.close()


# ------------------------------------------------------------------ disks that cannot write


def test_a_full_disk_ends_the_writing_with_one_warning_and_not_the_reading(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with small_disk(tmp_path / "small", "256k") as folder:
        target = cache(folder, limits=SealLimits(bytes=50_000))
        payload = {key(i): key(i) * 100 for i in range(400)}
        for k, value in payload.items():
            target.put_many([k], [value])
        written = target.counters()["written"]
        assert 100 < written < 200
        found = target.get_many(list(payload))
        assert found == [*list(payload.values())[:written], *[None] * (400 - written)]
        (warning,) = warnings(caplog)
        assert warning == (
            f"no more signals are written to {folder}, those in it are still read: "
            "[Errno 28] No space left on device"
        )
        target.close()
        assert target.get_many(list(payload)[:10]) == list(payload.values())[:10]
        assert suffixes(folder).count(".open") == 1
        next(folder.glob("*.seg")).unlink()
        caplog.clear()
        another = cache(folder)
        assert suffixes(folder).count(".open") == 0, "saved once there is room"
        assert warnings(caplog) == []
        again = another.get_many(list(payload))
        assert all(got in (value, None) for got, value in zip(again, payload.values(), strict=True))
        assert again[written - 1] is not None
        another.close()
        another = target = None


@pytest.mark.parametrize("is_open", [True, False])
def test_a_disk_that_turns_read_only(tmp_path: Path, caplog: pytest.LogCaptureFixture, is_open: bool) -> None:
    with small_disk(tmp_path / "small", "1m") as folder:
        write_segment(folder, range(5))
        if is_open:
            target = cache(folder)
        subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
        if not is_open:
            target = cache(folder)
        for i in range(5, 10):
            put(target, [i])
        assert target.get_many(keys(range(10))) == [*rows(range(5)), *[None] * 5]
        (warning,) = warnings(caplog)
        assert str(folder) in warning
        assert "Read-only file system" in warning
        target.close()


@pytest.mark.parametrize("call", ["fsync", "pwritev", "rename"])
def test_an_error_of_the_disk_at_any_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, call: str
) -> None:
    target = cache(tmp_path, limits=SealLimits(records=4))
    put(target, range(5))

    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail)
        for i in range(5, 12):
            put(target, [i])
    put(target, [13])
    last = 5 if call == "pwritev" else 8  # the one that is sealed with the eighth record fails
    assert target.get_many(keys(range(14))) == [*rows(range(last)), *[None] * (14 - last)]
    assert [bool(re.search("no more .*Input/output error", warning)) for warning in warnings(caplog)] == [
        True
    ]
    target.close()
    assert cache(tmp_path).get_many(keys(range(14))) == [*rows(range(last)), *[None] * (14 - last)]


def test_a_folder_that_cannot_be_made(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("in the way")
    target = cache(tmp_path / "file" / "cache")
    put(target, [1])
    assert target.get_many(keys([1])) == [None]
    target.close()
    assert sum("no more signals are written to" in warning for warning in warnings(caplog)) == 1


@pytest.mark.parametrize("ends", [True, False])
def test_a_folder_that_is_removed(tmp_path: Path, caplog: pytest.LogCaptureFixture, ends: bool) -> None:
    """It is said, also where the run ends next; what is in the open file is still read."""
    target = cache(tmp_path / "cache", limits=SealLimits(records=2))
    put(target, [1])
    shutil.rmtree(tmp_path / "cache")
    if not ends:
        put(target, [2, 3, 4])
        target.refresh()
        assert target.get_many(keys([1, 2, 3])) == [row(1), row(2), None]
    target.close()
    assert target.has_failed
    (said,) = warnings(caplog)
    assert "no more signals are written to" in said
    assert "No such file" in said


# ------------------------------------------------------------------ threads


def test_readers_never_miss_what_was_written(tmp_path: Path) -> None:
    """Neither while it is sealed nor while the writer changes."""
    target, done, wrong = cache(tmp_path, limits=SealLimits(records=3)), [0], []
    stop = threading.Event()

    def read() -> None:
        while not stop.is_set():
            until = done[0]
            numbers = range(max(0, until - 10), until)
            wrong.extend(
                i for i, got in zip(numbers, target.get_many(keys(numbers)), strict=True) if got != row(i)
            )

    threads = [threading.Thread(target=read) for _ in range(3)]
    for thread in threads:
        thread.start()
    for i in range(150):
        put(target, [i])
        done[0] = i + 1
    stop.set()
    for thread in threads:
        thread.join()
    assert wrong == []
    target.close()
    assert target.counters()["written"] == 150


def test_several_threads_write_one_segment_at_a_time(tmp_path: Path) -> None:
    target = cache(tmp_path, limits=SealLimits(records=10))
    threads = [
        threading.Thread(target=lambda begin=begin: [put(target, [i]) for i in range(begin, begin + 60)])
        for begin in (0, 30, 60)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert target.get_many(keys(range(120))) == rows(range(120))
    target.close()
    assert ".open" not in suffixes(tmp_path)
    assert cache(tmp_path).get_many(keys(range(120))) == rows(range(120))


def test_sealing_does_not_stop_readers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = cache(tmp_path)
    put(target, range(5))
    in_sync, go_on = threading.Event(), threading.Event()

    def slow(descriptor: int) -> None:
        in_sync.set()
        assert go_on.wait(20)

    monkeypatch.setattr(os, "fsync", slow)
    closing = threading.Thread(target=target.close)
    closing.start()
    assert in_sync.wait(20)
    assert target.get_many(keys(range(6))) == [*rows(range(5)), None]
    assert closing.is_alive()
    go_on.set()
    closing.join()
    assert target.get_many(keys(range(5))) == rows(range(5))


def test_the_cache_needs_no_torch() -> None:
    program = "import sys, distill_dist.teacher.signal_cache; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)

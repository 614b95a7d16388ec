"""Snapshots as they are written: by several processes, whole or not at all; what is in use or not ours stays."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import numpy as np
import pytest

from curriculum.snapshot_cases import ORIGIN, SIZES, names, some_columns, write
from distill_dist.curriculum.snapshot import Snapshot, list_snapshots
from distill_dist.curriculum.snapshot_record import (
    NUM_INTS,
    BlockEntry,
    entries_of,
    entries_table,
)
from distill_dist.curriculum.snapshot_writer import SnapshotWriter, prune, tidy
from distill_dist.errors import UserError

# ------------------------------------------------------------------ several processes


def test_entries_are_gathered_by_sums_of_integers(tmp_path: Path) -> None:
    ones = [SnapshotWriter(tmp_path, 2) for _ in range(3)]
    ones[0].begin()
    parts = [
        [writer.write_block(i, some_columns(SIZES[i], i), num_nan=i)]
        for i, writer in zip((2, 0, 1), ones, strict=True)
    ]
    tables = [entries_table(part, 3) for part in parts]
    assert tables[0].dtype == np.int64
    assert tables[0].shape == (3, NUM_INTS)
    entries = entries_of(sum(tables))  # type: ignore[arg-type]
    assert entries == [parts[1][0], parts[2][0], parts[0][0]]
    Snapshot.open(ones[1].commit(entries, ORIGIN, keep=1)).verify()


def test_every_entry_survives_its_integers() -> None:
    entry = BlockEntry(7, 2**40, 2**33, 2**34, 2**32 - 1, "ff" * 16 + "80" * 8 + "00" * 8)
    assert BlockEntry.from_ints(entry.to_ints()) == entry


@pytest.mark.parametrize("fault", ["missing", "twice"])
def test_a_block_that_nobody_or_two_wrote_is_noticed(tmp_path: Path, fault: str) -> None:
    writer = SnapshotWriter(tmp_path, 1)
    writer.begin()
    entries = [writer.write_block(i, some_columns(2, i)) for i in range(2)]
    table = entries_table(entries[: 1 if fault == "missing" else 2], 2)
    if fault == "twice":
        table[1] *= 2
    with pytest.raises(AssertionError, match="block 1 has the entry of"):
        writer.commit(entries_of(table), ORIGIN, keep=1)
    assert list_snapshots(tmp_path) == []


def test_a_disk_that_is_not_shared_is_noticed(tmp_path: Path) -> None:
    here, there = (SnapshotWriter(tmp_path / host, 1) for host in ("here", "there"))
    here.begin()
    with pytest.raises(UserError, match=r"\.tmp is not there: run_dir must be on a disk that every host"):
        there.write_block(1, some_columns(2, 1))
    there.begin()
    entries = [here.write_block(0, some_columns(2, 0)), there.write_block(1, some_columns(2, 1))]
    with pytest.raises(
        UserError, match=r"shard-000001\.bin is not there although it was written: run_dir must"
    ):
        here.commit(entries, ORIGIN, keep=1)
    (tmp_path / "here" / ".snapshot-00001.tmp" / "shard-000001.bin").write_bytes(b"short")
    with pytest.raises(UserError, match="has 5 of 52 bytes"):
        here.commit(entries, ORIGIN, keep=1)


# ------------------------------------------------------------------ rewriting, pruning, leftovers


def test_a_number_that_exists_is_replaced(tmp_path: Path) -> None:
    write(tmp_path, 1, seed=0)
    snapshot = Snapshot.open(write(tmp_path, 1, seed=50, sizes=(4,)))
    np.testing.assert_array_equal(snapshot.scores(0), some_columns(4, 50).score)
    assert snapshot.num_blocks == 1
    assert names(tmp_path) == ["snapshot-00001"]


def test_everything_is_on_the_disk_before_the_move_and_the_move_before_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def note_sync(descriptor: int) -> None:
        events.append(
            "sync " + Path(os.readlink(f"/proc/self/fd/{descriptor}")).relative_to(tmp_path).as_posix()
        )
        fsync(descriptor)

    def note_move(self: Path, target: Path) -> Path:
        events.append(f"move {self.name} {target.name}")
        return replace(self, target)

    write(tmp_path / "s", 1)
    monkeypatch.setattr(os, "fsync", note_sync)
    monkeypatch.setattr(Path, "replace", note_move)
    write(tmp_path / "s", 1)
    moves = [event for event in events if event.startswith("move")]
    assert moves[:2] == ["move snapshot-00001 .snapshot-00001.old", "move .snapshot-00001.tmp snapshot-00001"]
    before, after = events[: events.index(moves[0])], events[events.index(moves[1]) + 1 :]
    temporary = "sync s/.snapshot-00001.tmp"
    files = [f"{temporary}/shard-00000{i}.bin" for i in range(3)]
    assert before[-5:] == [*files, f"{temporary}/snapshot.json", temporary]
    assert after[0] == "sync s"  # and only then the old one goes
    assert after[1].startswith("move .snapshot-00001.old")


def test_old_ones_are_pruned_but_not_those_in_use(tmp_path: Path) -> None:
    for number in range(1, 5):
        write(tmp_path, number)
    write(tmp_path, 5, keep=2, in_use=frozenset({"snapshot-00001"}))
    assert names(tmp_path) == ["snapshot-00001", "snapshot-00004", "snapshot-00005"]
    prune(tmp_path, 1, {"snapshot-00004"})
    assert names(tmp_path) == ["snapshot-00004", "snapshot-00005"]


def test_snapshots_of_a_lost_future_do_not_push_out_those_of_the_present(tmp_path: Path) -> None:
    for number in (1, 2, 3, 7, 8):
        write(tmp_path, number)
    write(tmp_path, 3, keep=2)
    assert names(tmp_path) == [f"snapshot-0000{number}" for number in (2, 3, 7, 8)]


def test_what_is_not_ours_is_neither_listed_nor_pruned(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for number in (1, 2, 3, 4):
        write(tmp_path, number)
    write(tmp_path / "elsewhere", 1)
    (tmp_path / "snapshot-00000").symlink_to(tmp_path / "elsewhere" / "snapshot-00001")
    (tmp_path / "snapshot-00002" / "notes.txt").write_text("mine", encoding="utf-8")
    (tmp_path / "snapshot-00001").rename(tmp_path / "snapshot-00001.bak")
    (tmp_path / "snapshot-00005").mkdir()
    (tmp_path / "snapshot-1").mkdir()
    (tmp_path / ".snapshot-00001.swp").write_text("", encoding="utf-8")
    (tmp_path / ".snapshot-00001.tmp").write_text("a file", encoding="utf-8")
    assert [folder.name for folder in list_snapshots(tmp_path)] == [f"snapshot-0000{i}" for i in (2, 3, 4)]
    before = names(tmp_path)
    with caplog.at_level(logging.WARNING):
        prune(tmp_path, 1, set())
        tidy(tmp_path)
    assert sorted(set(before) - set(names(tmp_path))) == ["snapshot-00003"]
    assert "snapshot-00002 is kept: notes.txt in it is no part of one" in caplog.text
    assert (tmp_path / "elsewhere" / "snapshot-00001" / "snapshot.json").is_file()


def test_numbers_of_six_digits_come_after_those_of_five(tmp_path: Path) -> None:
    for number in (100_000, 99_999, 3):
        write(tmp_path, number)
    assert [folder.name for folder in list_snapshots(tmp_path)] == [
        "snapshot-00003",
        "snapshot-99999",
        "snapshot-100000",
    ]
    assert list_snapshots(tmp_path / "absent") == []


@pytest.mark.parametrize("kind", ["file", "folder", "link"])
def test_something_else_in_the_place_is_not_replaced(tmp_path: Path, kind: str) -> None:
    place = tmp_path / "snapshot-00001"
    if kind == "file":
        place.write_text("mine", encoding="utf-8")
    elif kind == "folder":
        place.mkdir()
    else:
        place.symlink_to("nowhere")
    with pytest.raises(UserError, match="snapshot-00001 is in the way and not a snapshot"):
        SnapshotWriter(tmp_path, 1).begin()
    assert names(tmp_path) == ["snapshot-00001"]


def test_the_next_writer_removes_what_dead_ones_left(tmp_path: Path) -> None:
    write(tmp_path, 1)
    for number in (1, 2):
        dead = SnapshotWriter(tmp_path, number)
        dead.begin()
        dead.write_block(5, some_columns(2, 0))
        (tmp_path / f".snapshot-0000{number}.0123abcd.gone").mkdir()
    write(tmp_path, 2)
    assert names(tmp_path) == ["snapshot-00001", "snapshot-00002"]
    assert names(tmp_path / "snapshot-00002")[-2:] == ["shard-000002.bin", "snapshot.json"]


def test_one_that_stepped_aside_comes_back_unless_the_new_one_is_there(tmp_path: Path) -> None:
    hashes = [Snapshot.open(write(tmp_path, number, seed=number)).hash for number in (1, 2)]
    (tmp_path / "snapshot-00001").rename(tmp_path / ".snapshot-00001.old")
    (tmp_path / ".snapshot-00002.old").mkdir()
    tidy(tmp_path)
    assert names(tmp_path) == ["snapshot-00001", "snapshot-00002"]
    assert [Snapshot.open(folder).hash for folder in list_snapshots(tmp_path)] == hashes
    tidy(tmp_path / "absent")
    assert not (tmp_path / "absent").exists()

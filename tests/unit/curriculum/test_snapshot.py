"""Snapshots: what was written comes back, what is damaged is named, what is in use or not ours stays."""

from __future__ import annotations

import json
import logging
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distill_dist.curriculum import snapshot as snapshot_module
from distill_dist.curriculum.scores import COLUMN_TYPES, Columns, given
from distill_dist.curriculum.snapshot import Snapshot, list_snapshots
from distill_dist.curriculum.snapshot_record import (
    NUM_INTS,
    ROW_BYTES,
    BlockEntry,
    Origin,
    Record,
    entries_of,
    entries_table,
    parse_record,
)
from distill_dist.curriculum.snapshot_writer import SnapshotWriter, prune, tidy
from distill_dist.errors import UserError

SIZES = (5, 1, 8)
ORIGIN = Origin(step=40, measure="margin", smoothing=0.5, manifest="m" * 64, parent="")


def some_columns(rows: int, seed: int) -> Columns:
    generator = np.random.default_rng(seed)
    values = {
        name: (
            generator.normal(size=rows) if dtype.kind == "f" else generator.integers(0, 60_000, rows)
        ).astype(dtype)
        for name, dtype in COLUMN_TYPES.items()
    }
    return Columns(**values)


def write(
    root: Path,
    number: int,
    *,
    seed: int = 0,
    sizes: tuple[int, ...] = SIZES,
    keep: int = 9,
    in_use: frozenset[str] = frozenset(),
) -> Path:
    writer = SnapshotWriter(root, number)
    writer.begin()
    entries = [writer.write_block(i, some_columns(rows, seed + i)) for i, rows in enumerate(sizes)]
    return writer.commit(entries, ORIGIN, keep=keep, in_use=in_use)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def column(name: str, *, seed: int = 0, sizes: tuple[int, ...] = SIZES) -> np.ndarray:
    return np.concatenate([getattr(some_columns(rows, seed + i), name) for i, rows in enumerate(sizes)])


# ------------------------------------------------------------------ what was written comes back


def test_a_snapshot_comes_back(tmp_path: Path) -> None:
    folder = write(tmp_path / "snapshots", 3, seed=7)
    assert folder == tmp_path / "snapshots" / "snapshot-00003"
    assert names(folder) == ["shard-000000.bin", "shard-000001.bin", "shard-000002.bin", "snapshot.json"]
    snapshot = Snapshot.open(folder)
    assert (snapshot.name, snapshot.record.number, snapshot.record.origin) == ("snapshot-00003", 3, ORIGIN)
    assert (snapshot.num_rows, snapshot.num_blocks) == (14, 3)
    assert snapshot.starts.tolist() == [0, 5, 6, 14]
    snapshot.verify()
    for block, rows in enumerate(SIZES):
        expected = some_columns(rows, 7 + block)
        np.testing.assert_array_equal(snapshot.scores(block), expected.score)
        for name in COLUMN_TYPES:
            np.testing.assert_array_equal(getattr(snapshot.columns(block), name), getattr(expected, name))
    assert not snapshot.scores(0).flags.writeable
    assert names(tmp_path / "snapshots") == ["snapshot-00003"]


def test_scores_stand_first_in_a_file(tmp_path: Path) -> None:
    content = (write(tmp_path, 1) / "shard-000000.bin").read_bytes()
    assert len(content) == SIZES[0] * ROW_BYTES
    np.testing.assert_array_equal(np.frombuffer(content, "<f4", SIZES[0]), some_columns(SIZES[0], 0).score)


@pytest.mark.parametrize("name", COLUMN_TYPES)
@pytest.mark.parametrize("sizes", [SIZES, (1,), (0, 4, 0, 0, 3, 0)])
def test_a_few_rows_of_any_column(tmp_path: Path, name: str, sizes: tuple[int, ...]) -> None:
    snapshot = Snapshot.open(write(tmp_path, 1, sizes=sizes))
    rows = np.random.default_rng(0).integers(0, sum(sizes), 30)
    found = snapshot.column_at(name, rows)
    assert found.dtype == COLUMN_TYPES[name]
    np.testing.assert_array_equal(found, column(name, sizes=sizes)[rows])
    assert snapshot.column_at(name, np.zeros(0, np.int64)).shape == (0,)
    np.testing.assert_array_equal(snapshot.scores_at(rows), column("score", sizes=sizes)[rows])


@pytest.mark.parametrize("row", [-1, 14])
def test_rows_beyond_the_snapshot_are_refused(tmp_path: Path, row: int) -> None:
    with pytest.raises(IndexError, match=f"{row}.* asked of 14"):
        Snapshot.open(write(tmp_path, 1)).scores_at(np.array([3, row]))


def test_few_maps_stay_open_and_arrays_outlive_theirs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = (3,) * 20
    folder = write(tmp_path, 1, sizes=sizes)
    monkeypatch.setattr(snapshot_module, "MAX_MAPS", 4)
    snapshot = Snapshot.open(folder)
    before = len(os.listdir("/proc/self/fd"))
    first = snapshot.scores(0)
    for block in range(20):
        snapshot.scores(block)
    assert len(os.listdir("/proc/self/fd")) <= before + 4 + 1
    np.testing.assert_array_equal(first, some_columns(3, 0).score)
    sent = pickle.dumps(snapshot)
    assert len(sent) == len(pickle.dumps(Snapshot.open(folder)))
    again = pickle.loads(sent)  # a loader's worker maps its own
    np.testing.assert_array_equal(again.scores_at(np.arange(60)), column("score", sizes=sizes))


def test_equal_snapshots_have_equal_hashes_and_others_do_not(tmp_path: Path) -> None:
    hashes = [Snapshot.open(write(tmp_path / str(i), 1, seed=seed)).hash for i, seed in enumerate((0, 0, 1))]
    assert hashes[0] == hashes[1] != hashes[2]


def test_rows_without_a_number_are_counted(tmp_path: Path) -> None:
    writer = SnapshotWriter(tmp_path, 0)
    writer.begin()
    scores = (np.float32([0.5, np.nan, np.nan]), np.float32([np.nan, 1]))
    entries = [writer.write_block(i, given(score), num_nan=i + 1) for i, score in enumerate(scores)]
    record = Snapshot.open(writer.commit(entries, ORIGIN, keep=1)).record
    assert (record.num_nan, record.num_unscored, record.num_rows) == (3, 3, 5)
    stated = json.loads((tmp_path / "snapshot-00000" / "snapshot.json").read_text(encoding="utf-8"))
    assert (stated["nan"], stated["unscored"], stated["rows"], stated["step"]) == (3, 3, 5, 40)


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


# ------------------------------------------------------------------ damage


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def test_damaged_scores_are_noticed_at_the_first_touch(tmp_path: Path) -> None:
    folder = write(tmp_path, 1)
    flip(folder / "shard-000002.bin", 4 * SIZES[2] - 1)
    snapshot = Snapshot.open(folder)
    snapshot.scores(1)
    for touch in (
        lambda: snapshot.scores(2),
        lambda: snapshot.scores_at(np.array([13])),
        lambda: snapshot.columns(2),
        snapshot.verify,
    ):
        with pytest.raises(
            UserError, match=r"snapshot-00001 is missing or damaged \(shard-000002\.bin does not have"
        ):
            touch()


def test_damage_in_another_column_does_not_stop_a_plan(tmp_path: Path) -> None:
    folder = write(tmp_path, 1)
    flip(folder / "shard-000000.bin", -1)
    snapshot = Snapshot.open(folder)
    np.testing.assert_array_equal(snapshot.scores(0), some_columns(SIZES[0], 0).score)
    for touch in (
        lambda: snapshot.columns(0),
        lambda: snapshot.column_at("count", np.array([0])),
        snapshot.verify,
    ):
        with pytest.raises(UserError, match="shard-000000"):
            touch()


@pytest.mark.parametrize(
    ("content", "said"),
    [(None, "No such file"), (b"", "empty file"), (b"short", "has 5 bytes instead of 130")],
)
def test_a_file_of_another_length_is_noticed(tmp_path: Path, content: bytes | None, said: str) -> None:
    folder = write(tmp_path, 1)
    path = folder / "shard-000000.bin"
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(
        UserError, match=rf"damaged \(shard-000000\.bin.*{said}.*put a copy of the folder in its"
    ):
        Snapshot.open(folder).scores(0)


def test_verify_reads_again_what_was_good(tmp_path: Path) -> None:
    folder = write(tmp_path, 1)
    snapshot = Snapshot.open(folder)
    snapshot.verify()
    flip(folder / "shard-000001.bin", 0)
    with pytest.raises(UserError, match="shard-000001"):
        snapshot.verify()


def damaged_records() -> dict[str, Any]:
    def changed(**values: Any) -> Any:
        return lambda record: {**record, **values}

    return {
        "not json": lambda record: None,
        "a list": lambda record: [],
        "no step": lambda record: {name: value for name, value in record.items() if name != "step"},
        "counts": changed(rows=15),
        "columns": changed(columns={"score": "<f8"}),
        "blocks": changed(blocks=[[14, 0, 0, 1, "ab"]]),
        "a negative": changed(rows=-14, blocks=[[-14, 0, 0, 1, "ab" * 32]]),
        "a float": changed(blocks=[[14.0, 0, 0, 1, "ab" * 32]]),
    }


@pytest.mark.parametrize("damage", damaged_records())
def test_a_damaged_record_is_refused(tmp_path: Path, damage: str) -> None:
    folder = write(tmp_path, 1)
    record = json.loads((folder / "snapshot.json").read_text(encoding="utf-8"))
    changed = damaged_records()[damage](record)
    (folder / "snapshot.json").write_text("{" if changed is None else json.dumps(changed), encoding="utf-8")
    with pytest.raises(
        UserError, match=r"snapshot-00001 is missing or damaged \(snapshot\.json cannot be read"
    ):
        Snapshot.open(folder)


def test_another_format_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has snapshot format 2, this version reads 1"):
        parse_record(b'{"format": 2}', tmp_path / "snapshot.json")


def test_a_snapshot_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"snapshot-00009 is missing or damaged \(snapshot\.json: No such file"
    ):
        Snapshot.open(tmp_path / "snapshot-00009")


def test_a_record_of_many_blocks_is_a_line_a_block(tmp_path: Path) -> None:
    entries = tuple(BlockEntry(i, 3, 1, 0, i, f"{i:064x}") for i in range(1000))
    record = Record(4, ORIGIN, entries)
    assert parse_record(record.to_bytes(), tmp_path / "x") == record
    assert len(record.to_bytes().splitlines()) < 1000 + 30


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

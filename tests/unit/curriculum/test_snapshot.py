"""Snapshots as they are read: what was written comes back, and what is damaged is named."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from curriculum.snapshot_cases import ORIGIN, SIZES, column, names, some_columns, write
from distill_dist.curriculum import snapshot as snapshot_module
from distill_dist.curriculum.scores import COLUMN_TYPES, given
from distill_dist.curriculum.snapshot import Snapshot
from distill_dist.curriculum.snapshot_record import (
    ROW_BYTES,
    BlockEntry,
    Record,
    parse_record,
)
from distill_dist.curriculum.snapshot_writer import SnapshotWriter
from distill_dist.errors import UserError

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

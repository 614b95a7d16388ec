"""The map of the rows counts every row once, or says of how many it is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from distill_dist.curriculum.snapshot import Snapshot
from distill_dist.report import rows_of_snapshot
from distill_dist.report.rows_of_snapshot import BINS, read_row_map
from report.run_cases import write_snapshot


def test_every_row_is_in_its_place(tmp_path: Path) -> None:
    folder = write_snapshot(tmp_path / "snapshots")
    found = read_row_map(tmp_path, [])
    assert found is not None
    assert (found.name, found.step, found.rows, found.of) == (folder.name, 150, 400, 400)
    snapshot = Snapshot.open(folder)
    rows = np.arange(400)
    mean = snapshot.column_at("mean", rows).astype(float)
    deviation = np.sqrt(snapshot.column_at("m2", rows).astype(float) / 3)
    expected = np.zeros((BINS, BINS), int)
    for down, across in zip(deviation / 0.5 * BINS, mean * BINS, strict=True):
        expected[min(int(down), BINS - 1), min(int(across), BINS - 1)] += 1
    # a value on an edge may fall on either side of it
    assert np.abs(found.counts - expected).sum() <= 4
    assert found.counts.sum() == 400
    assert found.forgotten.tolist() == np.bincount(snapshot.column_at("forgotten", rows)).tolist()


def test_of_many_rows_whole_shards_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_snapshot(tmp_path / "snapshots", sizes=(10, 20, 30, 40))
    monkeypatch.setattr(rows_of_snapshot, "MOST_ROWS", 50)
    found = read_row_map(tmp_path, [])
    assert found is not None
    assert (found.rows, found.of, int(found.counts.sum())) == (40, 100, 40)


def test_none_and_damage(tmp_path: Path) -> None:
    problems: list[str] = []
    assert read_row_map(tmp_path, problems) is None
    folder = write_snapshot(tmp_path / "snapshots")
    assert problems == []
    file = next(folder.glob("shard-*.bin"))
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert read_row_map(tmp_path, problems) is None
    assert len(problems) == 1
    assert folder.name in problems[0]

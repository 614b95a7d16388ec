"""The log of served rows: what is durable survives, what is not is cut, and the last word on a row counts."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from distill_dist.curriculum import served
from distill_dist.curriculum.scores import UNKNOWN, Fresh
from distill_dist.curriculum.served import RECORD, Latest, ServedLog, cut, latest
from distill_dist.errors import UserError

OpenLog = Callable[[Path, int], ServedLog]


@pytest.fixture
def open_log() -> Iterator[OpenLog]:
    """``ServedLog(path, length=...)``, closed when the test is over."""
    logs: list[ServedLog] = []

    def opened(path: Path, length: int) -> ServedLog:
        logs.append(ServedLog(path, length=length))
        return logs[-1]

    yield opened
    for log in logs:
        log.close()


def log_rows(log: ServedLog, step: int, positions: list[int], rows: list[int], values: list[float]) -> None:
    confidence = np.float32(values)
    log.append(
        step,
        positions=np.array(positions),
        rows=np.array(rows),
        confidence=confidence,
        loss=confidence * 2,
        predicted=np.nan_to_num(confidence * 10).astype(np.uint16),
        teacher_loss=confidence * 3,
    )


def of(
    paths: list[Path], from_step: int = 0, to_step: int = 100, *, first_row: int = 0, num_rows: int = 10
) -> Latest:
    return latest(paths, from_step, to_step, first_row=first_row, num_rows=num_rows)


def as_dict(found: Latest, first_row: int = 0) -> dict[int, float]:
    return {first_row + int(row): float(found.confidence[row]) for row in np.flatnonzero(found.seen)}


def test_the_last_word_by_step_and_position_counts(tmp_path: Path, open_log: OpenLog) -> None:
    paths = [tmp_path / "a.bin", tmp_path / "b.bin"]
    first, second = (open_log(path, 0) for path in paths)
    log_rows(first, 1, [0, 1, 2], [3, 4, 5], [0.125, 0.25, 0.375])
    log_rows(second, 2, [0], [3], [0.5])  # a later step, in the other file
    log_rows(first, 3, [7, 2], [4, 4], [0.625, 0.75])  # one batch, twice: position 7 is the later
    log_rows(second, 3, [8], [5], [0.875])
    assert (first.sync(), second.sync()) == (5, 2)
    for order in (paths, paths[::-1]):
        found = of(order)
        assert as_dict(found) == {3: 0.5, 4: 0.625, 5: 0.875}
        assert found.loss[3:6].tolist() == [1.0, 1.25, 1.75]
        assert found.teacher_loss[3:6].tolist() == [1.5, 1.875, 2.625]
        assert found.predicted[3:6].tolist() == [5, 6, 8]
        assert np.isnan(found.confidence[:3]).all()
        assert found.predicted[0] == UNKNOWN


def test_only_the_steps_and_rows_that_are_asked_for(tmp_path: Path, open_log: OpenLog) -> None:
    log = open_log(tmp_path / "a.bin", 0)
    for step in range(1, 7):
        log_rows(log, step, [0, 1], [step, 0], [step / 8, step / 16])
    log.sync()
    assert as_dict(of([tmp_path / "a.bin"], 2, 4)) == {2: 0.25, 3: 0.375, 0: 3 / 16}
    assert as_dict(of([tmp_path / "a.bin"], 6, 7)) == {6: 0.75, 0: 6 / 16}
    assert as_dict(of([tmp_path / "a.bin"], 7, 9)) == {}
    assert as_dict(of([tmp_path / "a.bin"], 0, 9, first_row=3, num_rows=2), 3) == {3: 0.375, 4: 0.5}
    assert as_dict(of([tmp_path / "absent.bin"])) == {}


@pytest.mark.parametrize("chunk", [1, 7, 1 << 16])
def test_every_sharing_out_and_every_chunk_gives_what_brute_force_gives(
    tmp_path: Path, open_log: OpenLog, monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    monkeypatch.setattr(served, "CHUNK", chunk)
    generator = np.random.default_rng(1)
    expected: dict[int, float] = {}
    logs = {size: [open_log(tmp_path / f"{size}-{rank}.bin", 0) for rank in range(size)] for size in (1, 3)}
    for step in range(12):
        rows, values = generator.integers(0, 40, 9), generator.integers(0, 100, 9) / 128
        if 3 <= step < 10:
            expected |= dict(zip(rows.tolist(), values.tolist(), strict=True))
        for size, parts in logs.items():
            for rank, log in enumerate(parts):
                own = generator.permutation(np.arange(rank, 9, size))  # a process may log them in any order
                log_rows(log, step, own.tolist(), rows[own].tolist(), values[own].tolist())
    for size, parts in logs.items():
        for log in parts:
            log.sync()
        paths = [tmp_path / f"{size}-{rank}.bin" for rank in range(size)]
        assert as_dict(of(paths, 3, 10, num_rows=40)) == expected


def test_a_log_goes_on_at_the_durable_length(tmp_path: Path, open_log: OpenLog) -> None:
    path = tmp_path / "logs" / "a.bin"
    log = open_log(path, 0)
    log_rows(log, 1, [0, 1], [1, 2], [0.25, 0.5])
    durable = log.sync()
    log_rows(log, 2, [0, 1], [1, 2], [0.75, 0.875])
    log.close()
    with path.open("ab") as file:
        file.write(b"torn")
    assert as_dict(of([path])) == {1: 0.75, 2: 0.875}  # a reader leaves the torn record out
    log = open_log(path, durable)
    assert path.stat().st_size == durable * RECORD.itemsize
    log_rows(log, 2, [0], [2], [0.125])
    assert log.sync() == durable + 1
    log.close()
    assert as_dict(of([path])) == {1: 0.25, 2: 0.125}
    assert not [entry for entry in path.parent.iterdir() if entry != path]


def test_steps_of_a_file_do_not_fall_not_even_after_a_restart(tmp_path: Path, open_log: OpenLog) -> None:
    log = open_log(tmp_path / "a.bin", 0)
    log_rows(log, 5, [0], [1], [0.5])
    length = log.sync()
    with pytest.raises(AssertionError):
        log_rows(log, 4, [0], [1], [0.5])
    log.close()
    with pytest.raises(AssertionError):
        log_rows(open_log(tmp_path / "a.bin", length), 4, [0], [1], [0.5])


def test_a_new_log_forgets_what_was_there(tmp_path: Path, open_log: OpenLog) -> None:
    log = open_log(tmp_path / "a.bin", 0)
    log_rows(log, 5, [0], [1], [0.5])
    log.close()
    assert as_dict(of([tmp_path / "a.bin"])) == {1: 0.5}
    open_log(tmp_path / "a.bin", 0).close()
    assert as_dict(of([tmp_path / "a.bin"])) == {}


@pytest.mark.parametrize("content", [None, b"", bytes(RECORD.itemsize * 2 - 1)])
def test_a_log_that_lost_durable_records_is_refused(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "a.bin"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=r"a\.bin has [01] records, the checkpoint counts 2"):
        cut(path, 2)
    assert (path.read_bytes() if content is not None else None) == content


def test_cutting_a_log_that_never_was_does_nothing(tmp_path: Path) -> None:
    cut(tmp_path / "a.bin", 0)
    assert not list(tmp_path.iterdir())


def test_records_reach_the_disk_when_synced(
    tmp_path: Path, open_log: OpenLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = open_log(tmp_path / "a.bin", 0)
    sizes = []
    fsync = os.fsync

    def note(descriptor: int) -> None:
        sizes.append(os.fstat(descriptor).st_size)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", note)
    log_rows(log, 1, [0], [1], [0.5])
    assert log.sync() == 1
    assert sizes == [RECORD.itemsize]
    cut(tmp_path / "a.bin", 0)
    assert sizes == [RECORD.itemsize, 0]


def test_a_block_of_it_is_fresh_values(tmp_path: Path, open_log: OpenLog) -> None:
    log = open_log(tmp_path / "a.bin", 0)
    log_rows(log, 1, [0, 1], [13, 16], [0.5, np.nan])
    log.sync()
    fresh = of([tmp_path / "a.bin"], first_row=10, num_rows=8).fresh(3, np.array([1, 2, 0, 1]))
    assert isinstance(fresh, Fresh)
    assert fresh.seen.tolist() == [True, False, False, True]
    assert fresh.scored.tolist() == [True, False, False, False]
    assert fresh.num_nan == 1
    assert fresh.labels.tolist() == [1, 2, 0, 1]

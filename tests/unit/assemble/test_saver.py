"""What is written beside the training: when it counts, who hears of a failure, and what a stop waits for."""

from __future__ import annotations

import errno
import logging
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError

from assemble.savers import Group, saver_of
from distill_dist import checkpoint
from distill_dist.assemble.agreement import agree_on_start
from distill_dist.errors import Interrupted, UserError

FULL = OSError(errno.ENOSPC, "No space left on device")
SHORT_S, LONG_S = 0.05, 60.0


def progress() -> dict[str, Any]:
    return {"score": None}


def steps(root: Path) -> list[str]:
    return [folder.name for folder in checkpoint.complete_folders(root)]


class Gate:
    """Holds every write at its end, before its marker, until it is opened; ``error`` comes out of it then."""

    def __init__(self) -> None:
        self.error: BaseException | None = None
        self.reached, self.opened = threading.Event(), threading.Event()

    def __call__(self, *args: object) -> None:
        self.reached.set()
        assert self.opened.wait(LONG_S)
        if self.error is not None:
            raise self.error


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    found = Gate()
    monkeypatch.setattr(checkpoint, "_check_written", found)
    yield found
    found.opened.set()


def in_time(work: Callable[[], object], gate: Gate) -> bool:
    """Whether ``work`` ends while the write is held; if not, the gate is opened and its end awaited."""
    thread = threading.Thread(target=work)
    thread.start()
    thread.join(SHORT_S)
    ended = not thread.is_alive()
    gate.opened.set()
    thread.join(LONG_S)
    assert not thread.is_alive()
    return ended


def test_a_step_is_saved_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = saver_of(tmp_path, Group(0))
    target.save(20, progress)
    target.settle()
    assert steps(tmp_path) == ["step-00000020"]

    def again(*args: object, **more: object) -> None:
        raise AssertionError("written twice")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save", again)
        target.save(20, progress)
        target.settle()
    target.save(30, progress)
    target.settle()
    assert len(steps(tmp_path)) == 2
    assert (target.spent.saved, target.saved_step) == (2, 30)


@pytest.mark.parametrize("in_background", [True, False])
def test_training_goes_on_while_it_is_written(tmp_path: Path, gate: Gate, in_background: bool) -> None:
    weight = torch.ones(3)
    target = saver_of(
        tmp_path, Group(0), in_background=in_background, gather=lambda: {"weights/a": weight.clone()}
    )
    assert in_time(lambda: target.save(20, progress), gate) == in_background
    weight += 1  # the next step
    target.settle()
    found = checkpoint.newest(tmp_path)
    assert found is not None
    assert found.tensors["weights/a"].tolist() == [1.0, 1.0, 1.0]


def test_it_counts_only_once_its_marker_stands(tmp_path: Path, gate: Gate) -> None:
    target = saver_of(tmp_path, Group(0))
    target.save(20, progress)
    assert gate.reached.wait(LONG_S)
    assert [path.name[:14] for path in tmp_path.iterdir()] == [".step-00000020"]
    assert steps(tmp_path) == []
    assert not target.failed()
    gate.opened.set()
    target.settle()
    assert steps(tmp_path) == ["step-00000020"]


@pytest.mark.parametrize("waits", ["save", "settle", "close"])
def test_the_next_save_a_stop_and_the_end_wait_for_it(tmp_path: Path, gate: Gate, waits: str) -> None:
    target = saver_of(tmp_path, Group(0))
    target.save(20, progress)
    work: dict[str, Callable[[], object]] = {
        "save": lambda: target.save(30, progress),
        "settle": target.settle,
        "close": target.close,
    }
    assert not in_time(work[waits], gate)
    assert steps(tmp_path)[0] == "step-00000020"
    target.settle()
    assert steps(tmp_path) == ["step-00000020", *(["step-00000030"] if waits == "save" else [])]


def test_a_sibling_writes_nothing_and_waits_for_what_student_0_says(tmp_path: Path) -> None:
    sibling = Group(1)
    target = saver_of(tmp_path, sibling)
    target.settle()
    assert sibling.agreed == 0, "nothing was saved"
    target.save(20, progress)
    target.save(30, progress)
    assert sibling.agreed == 1
    target.settle()
    target.settle()
    assert sibling.agreed == 2
    target.close()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [FULL, SafetensorError("I/O error: No space left on device (os error 28)")])
@pytest.mark.parametrize("told", ["save", "settle"])
def test_a_full_disk_stops_all_students_in_good_order(
    tmp_path: Path, gate: Gate, error: Exception, told: str
) -> None:
    gate.error = error
    first, second = saver_of(tmp_path, Group(0)), saver_of(tmp_path, Group(1, others=1))
    for target in (first, second):
        target.save(20, progress)
    gate.opened.set()
    assert first._pending is not None
    first._pending.seconds.exception(LONG_S)
    assert (first.failed(), second.failed()) == (True, False)
    for target in (first, second):
        with pytest.raises(Interrupted, match=rf"{tmp_path} cannot be written \(.*\): make room"):
            target.save(30, progress) if told == "save" else target.settle()
    assert list(tmp_path.iterdir()) == []
    for target in (first, second):
        target.close()  # everybody heard of it: nothing is left to say


def test_without_the_background_a_full_disk_is_told_at_once(tmp_path: Path, gate: Gate) -> None:
    gate.error = FULL
    gate.opened.set()
    with pytest.raises(Interrupted, match="No space left"):
        saver_of(tmp_path, Group(0), in_background=False).save(20, progress)


def test_a_bug_is_no_full_disk(tmp_path: Path, gate: Gate) -> None:
    gate.error = ZeroDivisionError("a bug")
    target = saver_of(tmp_path, Group(0))
    target.save(20, progress)
    gate.opened.set()
    with pytest.raises(ZeroDivisionError):
        target.settle()


def test_a_disk_that_does_not_answer_ends_the_run(tmp_path: Path, gate: Gate) -> None:
    target = saver_of(tmp_path, Group(0), limit_s=SHORT_S)
    target.save(20, progress)
    with pytest.raises(Interrupted, match=rf"cannot be written \(not done after {SHORT_S:.0f} s\)"):
        target.settle()


@pytest.mark.parametrize("error", [None, FULL])
def test_what_ends_a_run_is_not_hidden_by_what_is_still_written(
    tmp_path: Path, gate: Gate, caplog: pytest.LogCaptureFixture, error: Exception | None
) -> None:
    gate.error = error
    target = saver_of(tmp_path, Group(0))
    target.save(20, progress)
    gate.opened.set()
    caplog.clear()
    with caplog.at_level(logging.INFO):
        target.close()
    assert caplog.messages == [
        "the checkpoint of step 20 was still being written, and stands"
        if error is None
        else f"the checkpoint of step 20 could not be written: {FULL}"
    ]
    assert len(steps(tmp_path)) == (error is None)


def test_the_pause_is_told(tmp_path: Path) -> None:
    target = saver_of(tmp_path, Group(0))
    for step in (20, 30):
        target.save(step, progress)
    target.settle()
    telemetry: Any = target.telemetry
    tags = [(step, *scalars) for step, scalars in telemetry.written]
    assert tags == [
        (20, "checkpoint/pause_s"), (20, "checkpoint/write_s"), (30, "checkpoint/pause_s"), (30, "checkpoint/write_s"),
    ]  # fmt: skip
    pauses = [scalars["checkpoint/pause_s"] for _, scalars in telemetry.written[::2]]
    assert target.spent.pause_s == pytest.approx(sum(pauses))
    assert target.spent.longest_pause_s == max(pauses)
    assert target.spent.write_s == pytest.approx(
        sum(scalars["checkpoint/write_s"] for _, scalars in telemetry.written[1::2])
    )
    assert set(target.spent.describe()) == {"saved", "pause_s", "longest_pause_s", "write_s"}


class Found:
    """A student that agrees with one that goes on from ``theirs``."""

    def __init__(self, rank: int, theirs: int) -> None:
        self.rank, self.theirs = rank, theirs

    def agree(self, value: int) -> int:
        return max(value, self.theirs if value >= 0 else -self.theirs)


def test_students_that_found_different_checkpoints_begin_nothing() -> None:
    same: Any = Found(1, 40)
    agree_on_start(same, 40)
    for rank, mine, theirs in ((0, 40, 60), (1, 60, 40)):
        group: Any = Found(rank, theirs)
        with pytest.raises(UserError, match="of steps from 40 to 60: run_dir must be one folder") as caught:
            agree_on_start(group, mine)
        assert caught.value.said == (rank != 0)

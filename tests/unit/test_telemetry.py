from __future__ import annotations

import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.summary.writer import event_file_writer
from torch import Tensor

from distill_dist.errors import UserError
from distill_dist.telemetry import Telemetry

TERMS = ("cross_entropy", "gradient_embedding")


class Clock:
    """Seconds that pass when told to."""

    def __init__(self) -> None:
        self.now = 50.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr("distill_dist.telemetry.time.perf_counter", found)
    return found


def alone(tensor: Tensor) -> Tensor:
    return tensor


def telemetry(
    folder: Path,
    *,
    rank: int = 0,
    students: int = 1,
    sum_: Callable[[Tensor], Tensor] = alone,
    start: int = 0,
    measures: tuple[str, ...] = (),
    progress: bool = False,
) -> Telemetry:
    return Telemetry(
        folder,
        terms=TERMS,
        rank=rank,
        students=students,
        sum_=sum_,
        device=torch.device("cpu"),
        total_steps=10,
        start_step=start,
        progress=progress,
        measures=measures,
    )


def add(target: Telemetry, ce: float, gradient: float, *, real: int, computed: int, zero: int = 0) -> None:
    sums = {
        "cross_entropy": torch.tensor(ce),
        "gradient_embedding": torch.tensor(gradient),
        "other": torch.ones(()),
    }
    target.add(sums, torch.tensor(zero), real_tokens=torch.tensor(real), computed_tokens=computed)


def speak(target: Telemetry, step: int = 1, waited_s: float = 0.0) -> dict[str, float]:
    return target.speak(step, learning_rate=0.5, gradient_norm=2.0, waited_s=waited_s)


def events(folder: Path) -> dict[str, list[tuple[int, float]]]:
    accumulator = EventAccumulator(str(folder)).Reload()
    tags = accumulator.Tags()["scalars"]
    return {tag: [(event.step, event.value) for event in accumulator.Scalars(tag)] for tag in tags}


def test_numbers_are_logged_for_the_file(
    tmp_path: Path, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    target = telemetry(tmp_path)
    add(target, 4.0, 2.0, real=5, computed=10)
    target.step_done(sequences=4, tokens=5)
    clock.now += 1.0
    with caplog.at_level("DEBUG", logger="distill_dist"):
        speak(target, 7)
    (record,) = caplog.records
    assert record.levelname == "DEBUG"  # the console shows the bar instead
    assert record.getMessage().startswith("step 7: loss/cross_entropy 1, ")


def test_without_a_terminal_the_bar_is_a_line_of_its_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = telemetry(tmp_path, progress=True)
    sys.stderr.write("[rank 0] a message\n")
    for _ in range(10):
        target.step_done(sequences=4, tokens=5)
    sys.stderr.write("[rank 0] another\n")
    target.close()
    *lines, end = capsys.readouterr().err.split("\n")
    assert end == ""
    assert [line.split(":")[0] for line in lines] == [
        "train",
        "[rank 0] a message",
        "[rank 0] another",
        "train",
    ]
    assert "100%" in lines[-1]


def test_means_over_two_students_and_several_micro_batches(tmp_path: Path, clock: Clock) -> None:
    sent: list[Tensor] = []

    def record(tensor: Tensor) -> Tensor:
        sent.append(tensor.clone())
        return tensor

    def with_other(tensor: Tensor) -> Tensor:
        return tensor.add_(sent[0])

    other = telemetry(tmp_path, rank=1, students=2, sum_=record)
    first = telemetry(tmp_path, students=2, sum_=with_other)
    add(other, 3.0, 8.0, real=10, computed=16)
    add(first, 1.0, 4.0, real=20, computed=24)
    add(first, 2.0, 12.0, real=30, computed=40)
    clock.now += 4.0
    for each in (other, first):
        each.step_done(sequences=8, tokens=60)
    speak(other, waited_s=1.0)
    found = speak(first, waited_s=3.0)
    assert found == pytest.approx(
        {
            "loss/cross_entropy": 6 / 8,
            "loss/gradient_embedding": 24 / 60,  # per token
            "train/learning_rate": 0.5,
            "train/gradient_norm": 2.0,
            "throughput/samples_per_s": 2.0,
            "throughput/tokens_per_s": 15.0,
            "throughput/real_token_share": 0.75,
            "throughput/teacher_wait_share": 0.5,  # (1 + 3) s of 2 students in 4 s
            "teacher_wait_share/student_0": 0.75,
            "teacher_wait_share/student_1": 0.25,
        }
    )
    assert first.totals.sequences == 8
    assert first.totals.real_tokens == 60
    assert first.totals.computed_tokens == 80
    assert first.totals.waited_s == 4.0
    assert first.totals.elapsed_s == 4.0


def test_an_interval_starts_from_nothing(tmp_path: Path, clock: Clock) -> None:
    target = telemetry(tmp_path)
    waited_s = 0.0
    for step in (1, 2):
        add(target, 4.0 * step, 2.0, real=5, computed=10)
        target.step_done(sequences=4, tokens=5)
        clock.now += 1.0
        waited_s += 0.25
        found = speak(target, step, waited_s=waited_s)
        clock.now += 100.0  # an evaluation, which waits for its teacher too
        waited_s += 70.0
        target.resume_clock(waited_s=waited_s)
        assert found["loss/cross_entropy"] == 1.0 * step
        assert found["throughput/samples_per_s"] == 4.0
        assert found["throughput/teacher_wait_share"] == 0.25
    assert target.totals.sequences == 8
    assert target.totals.elapsed_s == 2.0
    assert speak(target, 3) == {}  # no step since


def test_measures_are_means_over_their_own_counts(tmp_path: Path, clock: Clock) -> None:
    """Not every micro-batch has all of them; where nothing was counted, nothing is said."""
    target = telemetry(tmp_path, measures=("a/share", "a/cosine"))

    def add_measures(**found: tuple[float, int]) -> None:
        measures = {f"a/{name}": (torch.tensor(s), torch.tensor(n)) for name, (s, n) in found.items()}
        target.add({}, torch.tensor(0), real_tokens=torch.tensor(5), computed_tokens=5, measures=measures)

    told = []
    for cosine in ({"cosine": (-1.0, 2)}, {}):
        add_measures(share=(1.0, 3), **cosine)
        add_measures(share=(2.0, 5))
        target.step_done(sequences=8, tokens=10)
        clock.now += 1.0
        told.append({tag: value for tag, value in speak(target).items() if tag.startswith("a/")})
    assert told == [{"a/share": 3 / 8, "a/cosine": -0.5}, {"a/share": 3 / 8}]
    assert target.totals.measures == {"a/share": (6.0, 16.0), "a/cosine": (-1.0, 2.0)}


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_no_number_stops_the_run(tmp_path: Path, value: float) -> None:
    target = telemetry(tmp_path)
    add(target, value, 1.0, real=5, computed=5)
    target.step_done(sequences=1, tokens=5)
    with pytest.raises(
        UserError,
        match=r"not finite before step 7 \(loss/cross_entropy -?(nan|inf), .*lower train.learning_rate",
    ):
        speak(target, 7)


def test_a_gradient_without_direction_stops_the_run(tmp_path: Path) -> None:
    target = telemetry(tmp_path)
    add(target, 1.0, 1.0, real=5, computed=5, zero=2)
    add(target, 1.0, 1.0, real=5, computed=5, zero=1)
    target.step_done(sequences=1, tokens=10)
    with pytest.raises(UserError, match="3 tokens or sequences before step 7 had a zero gradient"):
        speak(target, 7)


def test_a_siblings_nan_stops_this_student_too(tmp_path: Path) -> None:
    """Everybody sees the summed values, so that nobody goes on alone."""
    target = telemetry(tmp_path, rank=1, students=2, sum_=lambda tensor: tensor.mul_(math.nan))
    add(target, 1.0, 1.0, real=5, computed=5)
    target.step_done(sequences=1, tokens=5)
    with pytest.raises(UserError):
        speak(target)


def test_tensorboard_gets_every_scalar_at_its_step(tmp_path: Path) -> None:
    target = telemetry(tmp_path)
    for step in (1, 2):
        add(target, 1.0 * step, 2.0, real=5, computed=10)
        target.step_done(sequences=1, tokens=5)
        found = speak(target, step)
    target.write(2, {"dev/accuracy": 0.75})
    target.close()
    written = events(tmp_path)
    assert set(written) == {*found, "dev/accuracy"}
    assert written["loss/cross_entropy"] == [(1, 1.0), (2, 2.0)]
    assert written["dev/accuracy"] == [(2, 0.75)]


def test_a_histogram_keeps_its_own_bins(tmp_path: Path) -> None:
    target = telemetry(tmp_path)
    counts, edges = np.array([0, 0, 3, 1, 0]), np.linspace(0.0, 1.0, 6)
    target.histograms(4, {"curriculum/confidence": (counts, edges), "reliance/lambda": (0 * counts, edges)})
    target.close()
    accumulator = EventAccumulator(str(tmp_path)).Reload()
    (event,) = accumulator.Histograms("curriculum/confidence")
    found = event.histogram_value
    assert event.step == 4
    assert list(found.bucket_limit) == edges[1:].tolist()
    assert list(found.bucket) == [0, 0, 3, 1, 0]
    # what is drawn of the outermost bins that hold something
    assert (found.min, found.max, found.num) == (edges[2], edges[4], 4)
    assert found.sum / found.num == pytest.approx((3 * 0.5 + 0.7) / 4)
    assert found.sum_squares == pytest.approx(3 * 0.5**2 + 0.7**2)
    (empty,) = accumulator.Histograms("reliance/lambda")
    assert empty.histogram_value.num == 0


def test_a_resumed_run_takes_back_what_its_checkpoint_does_not_know(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # files of one second and one process are told apart by a counter only, of which 10 is read before 9
    monkeypatch.setattr(event_file_writer, "_global_uid", event_file_writer.AtomicCounter(0))
    for start, steps in ((0, (1, 2, 3)), (2, (3, 4))):
        target = telemetry(tmp_path, start=start)
        for step in steps:
            target.write(step, {"dev/accuracy": step + start / 10})
        target.close()
    values = {step: pytest.approx(value) for step, value in ((1, 1.0), (2, 2.0), (3, 3.2), (4, 4.2))}
    assert dict(events(tmp_path)["dev/accuracy"]) == values


def test_only_student_zero_writes(tmp_path: Path) -> None:
    target = telemetry(tmp_path, rank=1, students=2)
    add(target, 1.0, 1.0, real=5, computed=5)
    target.step_done(sequences=1, tokens=5)
    speak(target)
    target.write(1, {"dev/accuracy": 1.0})
    target.histograms(1, {"curriculum/confidence": (np.ones(2, int), np.arange(3.0))})
    target.close()
    assert list(tmp_path.iterdir()) == []


def test_adding_waits_for_no_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU each of these calls is a sync inside the step."""
    target = telemetry(tmp_path)

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a host sync")

    for name in ("item", "tolist", "cpu", "__float__", "__bool__"):
        monkeypatch.setattr(Tensor, name, refuse)
    add(target, 1.0, 1.0, real=5, computed=5)
    target.step_done(sequences=1, tokens=5)
    with pytest.raises(AssertionError, match="a host sync"):
        speak(target)


@pytest.mark.parametrize("norm", [math.nan, math.inf])
def test_a_gradient_that_is_no_number_stops_the_run(tmp_path: Path, norm: float) -> None:
    target = telemetry(tmp_path)
    add(target, 1.0, 1.0, real=5, computed=5)
    target.step_done(sequences=1, tokens=5)
    with pytest.raises(UserError, match=r"the gradient's norm is (nan|inf) at step 7"):
        target.speak(7, learning_rate=0.5, gradient_norm=norm, waited_s=0.0)


def test_a_full_disk_at_the_end_does_not_hide_why_it_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    target = telemetry(tmp_path)
    close = target._writer.close  # type: ignore[union-attr]

    def full() -> None:
        close()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(target._writer, "close", full)
    target.close()
    assert "No space left" in caplog.text

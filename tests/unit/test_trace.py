from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_encoders import ragged_batch, take_rows

from distill_dist.errors import UserError
from distill_dist.objectives.objective import LossTerms
from distill_dist.records import BatchCounts, Step
from distill_dist.trace import Trace

WHOLE = ragged_batch((4, 3, 5, 2))


def step(number: int) -> Step:
    pieces = (take_rows(WHOLE, [2, 0]), take_rows(WHOLE, [1, 3], fillers=1))
    return Step(epoch=0, index=number, number=number, batches=pieces, counts=BatchCounts(4, 14))


def losses(number: int) -> list[LossTerms]:
    weights = {"cross_entropy": 0.5, "distillation": 0.5}
    value = torch.tensor(float(number), requires_grad=True)
    return [
        LossTerms({"cross_entropy": value + place, "distillation": 10 * value}, torch.zeros(()), weights)
        for place in range(2)
    ]


def write(path: Path, numbers: range) -> None:
    trace = Trace(path, first_step=numbers.start)
    for number in numbers:
        trace(step(number), losses(number))


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_one_line_a_step_with_real_rows_and_sums(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    write(path, range(3))
    assert lines(path)[2] == {
        "step": 2,
        "ids": [[2, 0], [1, 3]],  # the filler is not there
        "sums": {"cross_entropy": 5.0, "distillation": 40.0},
    }
    assert [line["step"] for line in lines(path)] == [0, 1, 2]


@pytest.mark.parametrize("first", [0, 2, 3, 5])
def test_a_resumed_run_cuts_where_its_checkpoint_stands(tmp_path: Path, first: int) -> None:
    path = tmp_path / "trace.jsonl"
    write(path, range(5))
    write(path, range(first, 7))
    assert [line["step"] for line in lines(path)] == list(range(7))


def test_a_torn_last_line_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    write(path, range(3))
    whole = path.read_text(encoding="utf-8")
    path.write_text(whole[:-20], encoding="utf-8")
    write(path, range(2, 4))
    assert [line["step"] for line in lines(path)] == [0, 1, 2, 3]


def test_every_step_is_on_disk_when_it_is_committed(tmp_path: Path) -> None:
    """A killed process must not take steps with it that a checkpoint counts."""
    path = tmp_path / "trace.jsonl"
    trace = Trace(path, first_step=0)
    for number in range(3):
        trace(step(number), losses(number))
        assert len(lines(path)) == number + 1


def test_steps_without_rows_of_this_rank(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    filler = take_rows(WHOLE, [0])
    filler = replace(filler, is_real_B=torch.zeros(1, dtype=torch.bool))
    Trace(path, first_step=0)(replace(step(0), batches=(filler,)), losses(0)[:1])
    assert lines(path)[0]["ids"] == [[]]


@pytest.mark.parametrize("content", [b"\xff\xfe\n", b"{torn\n", b"[]\n", b"{}\n"])
def test_what_is_no_trace_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"trace\.jsonl is not the trace of a run"):
        Trace(path, first_step=1)
    assert path.read_bytes() == content

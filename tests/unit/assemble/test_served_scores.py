"""The score logs of a run whose number of students changes, and of one that lost a student's log."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from assemble.students import on_each, said
from distill_dist.assemble.served_scores import ServedScores
from distill_dist.curriculum.served import latest
from distill_dist.errors import UserError
from distill_dist.records import Batch

BATCH = 4


def serve(
    folder: Path, size: int, steps: Iterable[int], lengths: dict[str, int], *, lost: Iterable[int] = ()
) -> list[Any]:
    """(lengths for the checkpoint after ``steps``, names of logs) of each of ``size`` students, or what ended it.

    They serve the steps ``lost`` after that checkpoint, and other words of their rows.
    """

    def life(student: Any) -> tuple[dict[str, int], list[str]]:
        scores = ServedScores(folder, student, measure="margin", lengths=lengths, flush_every=1)
        with contextlib.closing(scores):
            for step in steps:
                take(scores, step, student, sign=1)
            counted = scores.sync()
            for step in lost:
                take(scores, step, student, sign=-1)
        return counted, [path.name for path in scores.paths]

    return on_each(size, life)


def take(scores: ServedScores, step: int, student: Any, *, sign: int) -> None:
    """A student's share of the rows ``step`` × BATCH and following: it is the surer of a row the higher its number."""
    places = torch.arange(student.rank, BATCH, student.size)
    rows, zeros = places + step * BATCH, torch.zeros(len(places), dtype=torch.int64)
    batch = Batch(
        ids_B=rows, input_ids_BL=zeros[:, None], attention_mask_BL=zeros[:, None],
        token_type_ids_BL=zeros[:, None], labels_B=zeros, is_real_B=zeros == 0, positions_B=places,
    )  # fmt: skip
    terms: Any = SimpleNamespace(logits_BC=torch.stack([sign * rows, zeros], dim=1).float())
    this: Any = SimpleNamespace(number=step, batches=(batch,))
    scores(this, [terms])


def assert_served(folder: Path, logs: list[str], rows: int) -> None:
    """The logs have the first ``rows`` rows once each, as they were served last."""
    found = latest([folder / name for name in logs], 0, 9, first_row=0, num_rows=rows + BATCH)
    assert found.seen.tolist() == [True] * rows + [False] * BATCH
    margin = np.tanh(np.arange(rows) / 2)  # of the classes' probabilities
    np.testing.assert_allclose(found.confidence[:rows], margin, atol=1e-6)


@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2), (3, 2)])
def test_what_was_served_counts_when_another_number_of_students_goes_on(
    tmp_path: Path, before: int, after: int
) -> None:
    lengths, _ = serve(tmp_path, before, (0, 1), {}, lost=(2,))[0]
    assert sum(lengths.values()) == 2 * BATCH
    names = [f"rank-{rank:05d}.log" for rank in range(max(before, after))]
    ends = serve(tmp_path, after, (2,), lengths)
    assert ends == ends[:1] * after
    counted, logs = ends[0]
    assert (logs, sorted(counted), sum(counted.values())) == (names, names, 3 * BATCH)
    assert_served(tmp_path, logs, 3 * BATCH)


def test_a_log_that_no_checkpoint_counts_is_emptied(tmp_path: Path) -> None:
    lengths, _ = serve(tmp_path, 1, (0, 1), {})[0]
    serve(tmp_path, 2, (), lengths, lost=(2, 3))
    _, logs = serve(tmp_path, 1, (2,), lengths)[0]
    assert len(logs) == 2
    assert_served(tmp_path, logs, 3 * BATCH)


@pytest.mark.parametrize("after", [1, 2])
def test_a_log_that_is_gone_is_refused_by_all(tmp_path: Path, after: int) -> None:
    lengths, logs = serve(tmp_path, 2, (0, 1), {})[0]
    before = (tmp_path / logs[0]).read_bytes()
    (tmp_path / logs[1]).unlink()
    (message,) = said(serve(tmp_path, after, (2,), lengths), UserError)
    assert f"{tmp_path}/rank-00001.log has 0 records, the checkpoint counts {BATCH}" in message
    assert "put a copy of the file in its place, or start again in another run_dir" in message
    assert (tmp_path / logs[0]).read_bytes() == before != b""

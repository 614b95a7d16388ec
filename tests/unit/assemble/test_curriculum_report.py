from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from config.trees import good_with

from assemble.students import on_each
from distill_dist.assemble.curriculum import EpochCurriculum
from distill_dist.assemble.curriculum_report import CurriculumReport
from distill_dist.assemble.epoch_plan import plan_spec, ranked_rows
from distill_dist.curriculum.plan import build_plan
from distill_dist.curriculum.scores import advance as advance_columns
from distill_dist.curriculum.scores import fresh_from_logits
from distill_dist.curriculum.snapshot import Snapshot
from distill_dist.curriculum.snapshot_record import Origin
from distill_dist.curriculum.snapshot_writer import SnapshotWriter

CLASSES = ("entailment", "neutral", "contradiction", "absent")
SIZES = np.array([30, 20, 10])
ROWS, BATCH = int(SIZES.sum()), 4
LABELS = np.arange(ROWS) % 3
ONE_ROW = 2 / ROWS  # of a pool of half the rows, which is rounded up


def snapshot_of(root: Path, sure: np.ndarray) -> Snapshot:
    """A model that is ``sure`` [rows] of the true class."""
    writer = SnapshotWriter(root, 1)
    writer.begin()
    entries = []
    logits_NC = np.zeros((ROWS, len(CLASSES)))
    logits_NC[np.arange(ROWS), LABELS] = sure
    for block, end in enumerate(np.cumsum(SIZES)):
        rows = slice(end - SIZES[block], end)
        fresh = fresh_from_logits("true_probability", logits_NC[rows], LABELS[rows])
        entries.append(writer.write_block(block, advance_columns(None, fresh, smoothing=0)))
    return Snapshot.open(writer.commit(entries, Origin(15, "true_probability", 0.0, "rows", ""), keep=1))


def report(
    folder: Path, sure: np.ndarray, *, groups: np.ndarray | None = None, start: float = 0.5
) -> dict[str, float]:
    """Scalars of the epoch after the snapshot."""
    snapshot = snapshot_of(folder, sure)
    config = good_with({"curriculum.order": "easy_to_hard", "curriculum.start": start, "batch.size": BATCH})
    spec = plan_spec(
        config, epoch=1, steps_per_epoch=15, total_steps=10**6, groups=1 if groups is None else 3, ranks=True
    )
    plan = build_plan(spec, ranked_rows(SIZES, snapshot, groups, by_score=True))
    now = EpochCurriculum(1, snapshot, plan=plan)

    def written(student: Any) -> dict[str, float]:
        scalars: dict[str, float] = {}
        telemetry: Any = SimpleNamespace(
            write=lambda step, found: scalars.update(found), histograms=lambda step, found: None
        )
        curriculum: Any = SimpleNamespace(now=now, group=student, steps_per_epoch=15, config=config)
        CurriculumReport(curriculum, telemetry, LABELS, CLASSES, "true_probability")(15)
        return scalars

    first, second = on_each(2, written)
    assert first == second
    return first


def shares(scalars: dict[str, float]) -> list[float]:
    """Of each class in the pool."""
    return [scalars[f"admitted/{name}"] for name in CLASSES]


def test_a_class_that_the_pool_lacks_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    unsure = 5.0 - LABELS + np.arange(ROWS) / ROWS  # of contradictions above all, then of neutrals
    scalars = report(tmp_path, unsure)
    assert shares(scalars) == pytest.approx([2 / 3, 1 / 3, 0, 0], abs=ONE_ROW)
    (message,) = set(caplog.messages)
    assert "class contradiction is 33 % of the rows but 0 % of the pool" in message
    assert "curriculum.stratify=label" in message


@pytest.mark.parametrize("kind", ["even", "stratified", "whole"])
def test_nothing_is_said_of_a_pool_that_has_every_class(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    caplog.set_level(logging.WARNING)
    even = np.arange(ROWS) / ROWS
    unsure = 5.0 - LABELS + even
    scalars = {
        "even": lambda: report(tmp_path, even),
        "stratified": lambda: report(tmp_path, unsure, groups=LABELS),
        "whole": lambda: report(tmp_path, unsure, start=1.0),
    }[kind]()
    assert shares(scalars) == pytest.approx([1 / 3, 1 / 3, 1 / 3, 0], abs=ONE_ROW)
    assert caplog.messages == []

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest

from assemble.students import on_each
from distill_dist.assemble.epoch_plan import make_plan
from distill_dist.curriculum.pacing import WHOLE, Stage
from distill_dist.curriculum.plan import PlanSpec, Ranked

SIZES = np.array([30, 25])
SCORES = np.random.default_rng(0).normal(size=(2, 30)).astype(np.float32)
RANKED = Ranked(SIZES, lambda block: SCORES[block, : SIZES[block]])
POSITIONS = np.arange(55)


def orders(folder: Path, epoch: int) -> list[list[int]]:
    """The epoch's rows on each of two students."""
    spec = PlanSpec(seed=0, epoch=epoch, batch_size=8, stages=(Stage(0, WHOLE // 2),), buckets=4)

    def rows(student: object) -> list[int]:
        plan = make_plan(spec, RANKED, student, folder, scored_by="scores", memory_bytes=1 << 20)  # type: ignore[arg-type]
        found: list[int] = plan.rows_at(POSITIONS).tolist()
        return found

    return on_each(2, rows)


def in_place_of_the_folder(folder: Path) -> None:
    folder.touch()


def in_place_of_the_file(folder: Path) -> None:
    (folder / "plan-00001.npz").mkdir(parents=True)


@pytest.mark.parametrize("put", [in_place_of_the_folder, in_place_of_the_file])
def test_a_plan_that_cannot_be_kept_is_the_same_plan(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, put
) -> None:
    caplog.set_level(logging.WARNING)
    expected = orders(tmp_path / "kept", 1)
    assert expected[0] == expected[1] != orders(tmp_path / "kept", 2)[0]
    assert (tmp_path / "kept" / "plan-00002.npz").is_file()
    assert caplog.messages == []
    plans = tmp_path / "plans"
    put(plans)
    for _ in range(2):  # it is made again by a run that goes on
        assert orders(plans, 1) == expected
        (message,) = caplog.messages
        assert "the epoch's plan is not kept" in message
        assert str(plans) in message
        caplog.clear()

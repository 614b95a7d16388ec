"""Plans inside windows of shards: each shard inside its window alone, the pacing respected, all positions used."""

from __future__ import annotations

import numpy as np
import pytest

from curriculum.plan_cases import admitted, case_of, expected_classes, stages
from distill_dist.curriculum.pacing import WHOLE, Stage
from distill_dist.curriculum.plan import PlanSpec, Ranked, build_plan


@pytest.mark.parametrize("window_shards", [1, 2, 5, 100])
@pytest.mark.parametrize("pacing", ["none", "linear", "step"])
@pytest.mark.parametrize("num_groups", [1, 2])
def test_windows_keep_each_shard_inside_its_own_span(
    window_shards: int, pacing: str, num_groups: int
) -> None:
    num_rows, batch_size = 3001, 16
    plan_stages = stages(pacing, num_rows, batch_size)
    case = case_of(
        "ties",
        num_rows,
        largest=200,
        stages=plan_stages,
        batch_size=batch_size,
        num_groups=num_groups,
        window_shards=window_shards,
    )
    plan, rows = case.plan, case.whole_epoch
    blocks = np.searchsorted(plan.ranked.starts, rows, side="right") - 1
    assert sorted(np.concatenate(plan.windows).tolist()) == list(range(len(plan.ranked.sizes)))
    assert all(len(window) <= window_shards for window in plan.windows)
    assert len(plan.windows) == 1 or [int(window[0]) for window in plan.windows] != sorted(
        map(min, plan.windows)
    )
    windows, first = plan.reading()
    assert first[0] == 0
    ends = [*first[1:].tolist(), num_rows]
    starts = [stage.first_step for stage in plan_stages]
    for window, start, end in zip(windows, first.tolist(), ends, strict=True):
        assert start < end
        assert set(blocks[start:end].tolist()) <= set(window)
        # its pool is the one with which it begins, but for a single window, whose pool grows
        stage = plan_stages[np.searchsorted(starts, start // batch_size, side="right") - 1]
        if len(plan.windows) > 1:
            members = np.isin(
                np.searchsorted(plan.ranked.starts, np.arange(num_rows), side="right") - 1, window
            )
            pool = np.flatnonzero(admitted(case, stage.cut) & members)
            counts = np.bincount(rows[start:end], minlength=num_rows)
            assert counts[pool].sum() == end - start, "rows that are not admitted"
            assert counts[pool].max() - counts[pool].min() <= 1, "once per pass"
    now = np.array([stage.cut for stage in plan_stages])[
        np.searchsorted(starts, np.arange(num_rows) // batch_size, side="right") - 1
    ]
    assert admitted(case, now, rows).all()
    if pacing == "none":
        assert np.array_equal(np.sort(rows), np.arange(num_rows))
        sizes = [int(plan.ranked.sizes[list(window)].sum()) for window in windows]
        assert np.diff([*first, num_rows]).tolist() == sizes
    assert np.array_equal(
        plan.draws(), np.bincount(expected_classes(case)[rows], minlength=case.spec.classes)
    )


def test_a_window_without_admitted_rows_has_no_positions() -> None:
    values = np.concatenate([np.zeros(50), np.ones(50), np.zeros(50)]).astype(np.float32)
    ranked = Ranked(np.array([50, 50, 50]), lambda block: values[50 * block : 50 * block + 50])
    for seed in range(6):
        spec = PlanSpec(
            seed=seed, epoch=0, batch_size=8, stages=(Stage(0, WHOLE // 4),), buckets=4, window_shards=1
        )
        plan = build_plan(spec, ranked)
        rows = plan.rows_at(np.arange(150))
        assert set(rows.tolist()) <= set(range(50, 100))
        assert plan.reading()[0] == [(1,)]

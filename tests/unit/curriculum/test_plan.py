"""A plan against numpy's sort: the same cut, the same buckets, every admitted row as often as promised."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from curriculum.plan_cases import FULL, admitted, assert_classes, case_of, expected_classes, stages
from distill_dist.curriculum.pacing import WHOLE, Stage
from distill_dist.curriculum.plan import PlanSpec, Ranked, build_plan

POLICIES = [
    {"direction": "easy_to_hard", "unscored": "hardest"},
    {"direction": "easy_to_hard", "unscored": "easiest"},
    {"direction": "hard_to_easy", "unscored": "hardest"},
    {"direction": "hard_to_easy", "unscored": "easiest"},
]


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("num_groups", [1, 3])
@pytest.mark.parametrize("kind", ["ties", "nans", "saturated", "constant"])
def test_cut_and_buckets_are_those_of_a_sort(kind: str, num_groups: int, policy: dict[str, Any]) -> None:
    num_rows = 20_003
    case = case_of(
        kind,
        num_rows,
        num_groups=num_groups,
        stages=stages("fixed_exponential", num_rows, 32),
        buckets=10,
        **policy,
    )
    classes = assert_classes(case)
    assert len(case.spec.stages) > 3
    for stage in case.spec.stages:
        inside = classes < case.spec.classes_admitted(stage)
        assert np.array_equal(inside, admitted(case, stage.cut)), "the pool is the cut's, to the row"
        assert case.plan.pool(stage.first_step) == (case.spec.classes_admitted(stage), int(inside.sum()))
    # all served are admitted
    steps = np.arange(num_rows) // 32
    starts = [stage.first_step for stage in case.spec.stages]
    pools = np.array([case.spec.classes_admitted(stage) for stage in case.spec.stages])
    served = classes[case.whole_epoch]
    assert (served < pools[np.searchsorted(starts, steps, side="right") - 1]).all()
    assert np.array_equal(case.plan.draws(), np.bincount(served, minlength=case.spec.classes))


@pytest.mark.parametrize("num_groups", [1, 2])
def test_a_million_rows_with_ties_nans_and_shards_of_one_class(num_groups: int) -> None:
    num_rows = 1_000_000
    case = case_of("ties", num_rows, largest=65_536, num_groups=num_groups, batch_size=256)
    case.values[::1000] = np.nan
    case = replace(case, plan=build_plan(case.spec, case.plan.ranked))
    assert_classes(case)
    rows = case.whole_epoch
    assert rows.dtype == np.int64
    assert np.array_equal(np.bincount(rows, minlength=num_rows), np.ones(num_rows)), (
        "nothing lost, nothing twice"
    )
    assert not np.array_equal(rows, np.arange(num_rows))


@pytest.mark.parametrize(
    ("num_rows", "batch_size"), [(1, 1), (1, 32), (2, 1), (7, 32), (32, 32), (33, 32), (100, 7), (4999, 64)]
)
@pytest.mark.parametrize("once_per_pass", [True, False])
@pytest.mark.parametrize("window_shards", [0, 2])
def test_without_pacing_every_row_comes_exactly_once(
    num_rows: int, batch_size: int, once_per_pass: bool, window_shards: int
) -> None:
    for kind in ("ties", "nans", "constant"):
        case = case_of(
            kind,
            num_rows,
            largest=40,
            batch_size=batch_size,
            once_per_pass=once_per_pass,
            window_shards=window_shards,
        )
        rows = case.whole_epoch
        assert np.array_equal(np.sort(rows), np.arange(num_rows))
        # in any order of asking, and shaped
        shuffled = np.random.default_rng(0).permutation(num_rows)
        assert np.array_equal(case.plan.rows_at(shuffled), rows[shuffled])
        assert case.plan.rows_at(shuffled.reshape(1, -1)).shape == (1, num_rows)
    assert case.plan.rows_at(np.empty(0, np.int64)).shape == (0,)


@pytest.mark.parametrize("pacing", ["linear", "competence", "fixed_exponential", "step", "logarithmic"])
@pytest.mark.parametrize(("num_rows", "batch_size"), [(3001, 32), (500, 256), (40, 64)])
@pytest.mark.parametrize("num_groups", [1, 3])
def test_no_row_twice_before_every_admitted_row_once(
    pacing: str, num_rows: int, batch_size: int, num_groups: int
) -> None:
    """By walking through the epoch with the set of rows served in the pass."""
    plan_stages = stages(pacing, num_rows, batch_size)
    case = case_of(
        "ties", num_rows, largest=300, stages=plan_stages, batch_size=batch_size, num_groups=num_groups
    )
    rows = case.whole_epoch.tolist()
    served: set[int] = set()
    pools = {
        stage.first_step * batch_size: set(np.flatnonzero(admitted(case, stage.cut)).tolist())
        for stage in plan_stages
    }
    pool: set[int] = set()
    passes = 0
    for position, row in enumerate(rows):
        pool = pools.get(position, pool)
        assert row in pool, "not admitted"
        if row in served:
            assert served == pool, "a row twice before every admitted row once"
            served, passes = set(), passes + 1
        served.add(row)
    if num_rows == 3001:  # the others have one step or two
        assert len(pools) > 1
        assert passes >= 1 or pacing in ("linear", "logarithmic"), (
            "whose pools grow too fast for a second pass"
        )


def test_a_row_admitted_early_is_served_more_often_without_passes() -> None:
    num_rows = 4000
    settings: dict[str, Any] = {"stages": stages("linear", num_rows, 32), "buckets": 8}
    shares = {}
    for once in (True, False):
        case = case_of("floats", num_rows, once_per_pass=once, **settings)
        counts = np.bincount(case.whole_epoch, minlength=num_rows)
        classes = expected_classes(case)
        last = case.spec.classes_admitted(case.spec.stages[-1])
        early, late = counts[classes == 0].mean(), counts[classes == last - 1].mean()
        shares[once] = (early, late)
        if not once:
            starts = np.array([stage.first_step * 32 for stage in case.spec.stages])
            drawn = np.zeros(case.spec.classes)
            of_class = np.bincount(classes, minlength=case.spec.classes)
            for stage, positions in zip(case.spec.stages, np.diff(np.append(starts, num_rows)), strict=True):
                pool = np.where(np.arange(case.spec.classes) < case.spec.classes_admitted(stage), of_class, 0)
                drawn += pool * positions / pool.sum()
            # each stage's share is rounded up or down
            assert np.abs(case.plan.draws() - drawn).max() < len(case.spec.stages)
    assert shares[False][0] > 2 * shares[False][1]
    assert shares[True][0] < 4


@pytest.mark.parametrize("batch_size", [32, 256])
@pytest.mark.parametrize("kind", ["floats", "saturated"])
def test_batch_means_deviate_ten_times_less_than_uniform_draws(kind: str, batch_size: int) -> None:
    num_rows = 200_000
    case = case_of(kind, num_rows, largest=65_536, batch_size=batch_size)
    whole = num_rows // batch_size * batch_size
    shuffled = np.random.default_rng(5).permutation(num_rows)

    def deviation(rows: np.ndarray) -> float:
        return float(case.values[rows[:whole]].reshape(-1, batch_size).mean(axis=1, dtype=np.float64).std())

    assert deviation(shuffled) > 10 * deviation(case.whole_epoch)


def test_batches_of_a_growing_pool_have_its_mix() -> None:
    num_rows, batch_size = 50_000, 64
    case = case_of(
        "floats",
        num_rows,
        batch_size=batch_size,
        stages=stages("step", num_rows, batch_size),
        once_per_pass=False,  # else a pass that has begun owes more hard rows
    )
    assert len(case.spec.stages) == 2
    classes = expected_classes(case)
    for stage in case.spec.stages:
        first = stage.first_step * batch_size
        pool = case.spec.classes_admitted(stage)
        batch = classes[case.plan.rows_at(np.arange(first, first + batch_size))]
        shares = (
            np.cumsum(np.bincount(classes[classes < pool])) * batch_size / np.count_nonzero(classes < pool)
        )
        assert np.abs(np.cumsum(np.bincount(batch, minlength=pool)) - shares).max() < 4


def test_epochs_seeds_and_scores_give_other_orders() -> None:
    base = case_of("floats", 2000)
    for changed in (case_of("floats", 2000, epoch=3), case_of("floats", 2000, seed=12)):
        # an epoch's classes may stand at the same positions: unrelated orders of 64 classes agree at 64 ± 8
        assert (base.whole_epoch == changed.whole_epoch).sum() < 64 + 40
    assert not np.array_equal(case_of("ties", 2000).whole_epoch, base.whole_epoch)
    assert np.array_equal(case_of("floats", 2000).whole_epoch, base.whole_epoch)


def test_passes_of_one_epoch_are_other_orders() -> None:
    case = case_of("floats", 4000, stages=(Stage(0, WHOLE // 8),), buckets=8)
    passes = case.whole_epoch.reshape(8, 500)
    for a in range(8):
        assert sorted(passes[a].tolist()) == sorted(passes[0].tolist())
        for b in range(a):
            assert (passes[a] == passes[b]).sum() < 12  # 1 ± 1 in unrelated orders


def test_rows_never_change() -> None:
    """A run that goes on in mid-epoch must go on with the same rows: change these and you break resuming."""
    values = np.linspace(0, 1, 1000, dtype=np.float32)
    ranked = Ranked(np.array([600, 400]), lambda block: values[600 * block : 1000 if block else 600])
    spec = PlanSpec(seed=42, epoch=3, batch_size=32, stages=stages("linear", 1000, 32))
    assert build_plan(spec, ranked).rows_at(np.array([0, 1, 2, 500, 501, 998, 999])).tolist() == [
        997,
        846,
        881,
        363,
        464,
        254,
        67,
    ]


def test_more_classes_than_a_16_bit_number_are_refused() -> None:
    spec = PlanSpec(seed=0, epoch=0, batch_size=2, stages=FULL, buckets=256, groups=257)
    with pytest.raises(AssertionError):
        build_plan(spec, Ranked(np.array([1]), lambda _: np.zeros(1, np.float32), lambda _: np.zeros(1, int)))

"""A plan against numpy's sort: the same cut, the same buckets, every admitted row as often as promised."""

from __future__ import annotations

import math
import tracemalloc
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from curriculum.test_selection import confidence, sorted_rows
from distill_dist.curriculum.pacing import WHOLE, Pacing, Stage, stages_of_epoch
from distill_dist.curriculum.plan import Plan, PlanSpec, Ranked, build_plan, load_plan

SEED = 11  # of test_selection's sort
FULL = (Stage(0, WHOLE),)
POLICIES = [
    {"direction": "easy_to_hard", "unscored": "hardest"},
    {"direction": "easy_to_hard", "unscored": "easiest"},
    {"direction": "hard_to_easy", "unscored": "hardest"},
    {"direction": "hard_to_easy", "unscored": "easiest"},
]


@dataclass(frozen=True)
class Case:
    """A plan and what it was made of."""

    plan: Plan
    values: np.ndarray
    groups: np.ndarray  # zeros without stratify
    num_groups: int

    @property
    def spec(self) -> PlanSpec:
        return self.plan.spec

    @property
    def whole_epoch(self) -> np.ndarray:
        return self.plan.rows_at(np.arange(len(self.values)))


def shard_sizes(num_rows: int, largest: int) -> np.ndarray:
    """Ragged; one of them a single row."""
    if num_rows == 1:
        return np.array([1])
    rest = num_rows - 1
    return np.array([largest] * (rest // largest) + [rest % largest] * (rest % largest > 0) + [1])


def case_of(
    kind: str,
    num_rows: int,
    *,
    largest: int = 1000,
    num_groups: int = 1,
    memory: int = 1 << 30,
    **settings: Any,
) -> Case:
    values = confidence(kind, num_rows)
    sizes = shard_sizes(num_rows, largest)
    edges = np.concatenate([[0], np.cumsum(sizes)])
    groups = np.random.default_rng(1).choice(num_groups, num_rows, p=_shares(num_groups))
    for block in range(0, len(sizes), 3):  # shards of a single class
        groups[edges[block] : edges[block + 1]] = block % num_groups
    ranked = Ranked(
        sizes,
        lambda block: values[edges[block] : edges[block + 1]],
        (lambda block: groups[edges[block] : edges[block + 1]]) if num_groups > 1 else None,
    )
    given: dict[str, Any] = {"batch_size": 32, "stages": FULL, "epoch": 2, "seed": SEED, "groups": num_groups}
    spec = PlanSpec(**(given | settings))
    return Case(build_plan(spec, ranked, memory_bytes=memory), values, groups, num_groups)


def _shares(num_groups: int) -> np.ndarray:
    shares = 2.0 ** -np.arange(num_groups)
    return shares / shares.sum()


def stages(pacing: str, num_rows: int, batch_size: int, *, align: int = 1) -> tuple[Stage, ...]:
    """Of the first of two epochs."""
    steps = math.ceil(num_rows / batch_size)
    made = Pacing(pacing, 2 * steps, start=0.2, full_at=0.35, increase_every=max(1, steps // 5))
    return tuple(stages_of_epoch(made, epoch=0, steps_per_epoch=steps, align=align))


def places_in_order(case: Case) -> tuple[np.ndarray, np.ndarray]:
    """Place of each row among its group's, in the order of training, by numpy's sort; and the group's rows."""
    places, sizes = np.empty(len(case.values), np.int64), np.empty(len(case.values), np.int64)
    policy = {"direction": case.spec.direction, "unscored": case.spec.unscored}
    for group in range(case.num_groups):
        rows = np.flatnonzero(case.groups == group)
        places[rows[sorted_rows(case.values[rows], rows, **policy)]] = np.arange(len(rows))
        sizes[rows] = len(rows)
    return places, sizes


def expected_classes(case: Case) -> np.ndarray:
    """Level × groups + group of each row: a row is below an edge if its place is below the edge's share of rows."""
    places, sizes = places_in_order(case)
    level = np.zeros(len(places), np.int64)
    for cut in case.spec.cuts:
        level += places * WHOLE >= cut * sizes
    return level * case.num_groups + case.groups


def found_classes(case: Case) -> np.ndarray:
    return np.concatenate([case.plan.classes_of(block) for block in range(len(case.plan.ranked.sizes))])


def admitted(case: Case, cut: int | np.ndarray, rows: slice | np.ndarray = slice(None)) -> np.ndarray:
    """Whether each of ``rows`` is, straight from its place: below ``cut`` / WHOLE of its group."""
    places, sizes = places_in_order(case)
    below: np.ndarray = places[rows] * WHOLE < cut * sizes[rows]
    return below


def assert_classes(case: Case) -> np.ndarray:
    classes = expected_classes(case)
    assert np.array_equal(found_classes(case), classes)
    starts = case.plan.ranked.starts
    for block, size in enumerate(case.plan.ranked.sizes):
        of = classes[starts[block] : starts[block] + size]
        assert case.plan.counts[block].tolist() == np.bincount(of, minlength=case.spec.classes).tolist()
    return classes


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("num_groups", [1, 3])
@pytest.mark.parametrize("kind", ["ties", "nans", "saturated", "constant"])
def test_cut_and_buckets_are_those_of_a_sort(kind: str, num_groups: int, policy: dict[str, str]) -> None:
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
        stage.first_step * batch_size: set(np.flatnonzero(admitted(case, stage.cut))) for stage in plan_stages
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
    settings = {"stages": stages("linear", num_rows, 32), "buckets": 8}
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


@pytest.mark.parametrize("window_shards", [0, 3])
def test_little_memory_changes_no_row(window_shards: int) -> None:
    settings = {"largest": 64, "stages": stages("linear", 3000, 32), "window_shards": window_shards}
    plenty, little = (case_of("ties", 3000, memory=memory, **settings) for memory in (1 << 30, 400))
    positions = np.arange(3000)
    expected = plenty.plan.rows_at(positions)
    assert np.array_equal(little.plan.rows_at(positions), expected)
    for start in range(0, 3000, 32):
        assert np.array_equal(
            little.plan.rows_at(positions[start : start + 32]), expected[start : start + 32]
        )
    tracemalloc.start()
    little.plan.rows_at(positions[:32])
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


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


@pytest.mark.parametrize("num_groups", [1, 3])
def test_a_saved_plan_gives_equal_rows_and_no_other(num_groups: int, tmp_path: Path) -> None:
    case = case_of("ties", 3000, num_groups=num_groups, stages=stages("linear", 3000, 32))
    path = tmp_path / "plan.npz"
    assert load_plan(path, "key", case.spec, case.plan.ranked) is None
    case.plan.save(path, "key")
    found = load_plan(path, "key", case.spec, case.plan.ranked)
    assert found is not None
    assert np.array_equal(found.rows_at(np.arange(3000)), case.whole_epoch)
    assert np.array_equal(found.counts, case.plan.counts)
    assert load_plan(path, "other key", case.spec, case.plan.ranked) is None
    case.plan.save(path, "other key")
    assert load_plan(path, "other key", case.spec, case.plan.ranked) is not None
    with np.load(path, allow_pickle=False) as arrays:  # for whoever looks into it
        assert "counts" in arrays


def test_a_damaged_plan_is_none(tmp_path: Path) -> None:
    case = case_of("ties", 30, largest=20, buckets=2)
    path = tmp_path / "plan.npz"
    case.plan.save(path, "key")
    whole = path.read_bytes()
    for length in [*range(0, len(whole), 97), len(whole) - 1]:
        path.write_bytes(whole[:length])
        assert load_plan(path, "key", case.spec, case.plan.ranked) is None
    for place in range(0, len(whole), 3):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << place % 8
        path.write_bytes(damaged)
        assert load_plan(path, "key", case.spec, case.plan.ranked) is None, place
    path.write_bytes(whole + b"\0")
    assert load_plan(path, "key", case.spec, case.plan.ranked) is None
    path.unlink()
    path.mkdir()
    assert load_plan(path, "key", case.spec, case.plan.ranked) is None


def test_more_classes_than_a_16_bit_number_are_refused() -> None:
    spec = PlanSpec(seed=0, epoch=0, batch_size=2, stages=FULL, buckets=256, groups=257)
    with pytest.raises(AssertionError):
        build_plan(spec, Ranked(np.array([1]), lambda _: np.zeros(1, np.float32), lambda _: np.zeros(1, int)))

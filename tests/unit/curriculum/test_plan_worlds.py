"""The same global batches bit for bit for any number of students, and when that number changes in mid-epoch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from data.test_loader import FakeSplit

from curriculum.test_selection import Lockstep, confidence
from distill_dist.curriculum.pacing import Pacing, stages_of_epoch
from distill_dist.curriculum.plan import Plan, PlanSpec, Ranked, build_plan
from distill_dist.data.loader import StepLoader
from distill_dist.data.windows import EpochPlan
from distill_dist.records import Step

WORLDS = [1, 2, 3, 5, 7, 8]
NUM_ROWS, BATCH, EPOCHS, SHARD = 1237, 48, 2, 150
STEPS = math.ceil(NUM_ROWS / BATCH)
SETTINGS: list[dict[str, Any]] = [
    {"pacing": "linear", "window": 4, "groups": 1},
    {"pacing": "fixed_exponential", "window": 1, "groups": 3, "direction": "hard_to_easy"},
    {"pacing": "root", "window": 3, "groups": 1, "window_shards": 2, "once_per_pass": False},
]

Plans = list[Plan]  # of each epoch


def spec_of(epoch: int, settings: dict[str, Any]) -> PlanSpec:
    others = {key: value for key, value in settings.items() if key not in ("pacing", "window")}
    pacing = Pacing(settings["pacing"], STEPS * EPOCHS, start=0.1, full_at=0.7, increase_every=4)
    stages = stages_of_epoch(pacing, epoch=epoch, steps_per_epoch=STEPS, align=settings["window"])
    assert epoch or len(stages) > 2
    return PlanSpec(seed=5, epoch=epoch, batch_size=BATCH, stages=tuple(stages), buckets=16, **others)


def ranked(settings: dict[str, Any]) -> Ranked:
    starts = np.arange(0, NUM_ROWS, SHARD)
    values = confidence("nans", NUM_ROWS)
    groups = np.random.default_rng(3).integers(0, settings["groups"], NUM_ROWS)
    return Ranked(
        np.diff(np.append(starts, NUM_ROWS)),
        lambda block: values[starts[block] : starts[block] + SHARD],
        (lambda block: groups[starts[block] : starts[block] + SHARD]) if settings["groups"] > 1 else None,
    )


def plans_of_world(size: int, settings: dict[str, Any]) -> list[Plans]:
    """What each of ``size`` processes builds together with the others; threads that sum at a barrier."""
    rows, lockstep = ranked(settings), Lockstep(size)

    def process(rank: int) -> Plans:
        reduce = lockstep.reduce_of(rank)
        return [
            build_plan(spec_of(epoch, settings), rows, rank=rank, size=size, reduce=reduce)
            for epoch in range(EPOCHS)
        ]

    with ThreadPoolExecutor(size) as pool:
        found = list(pool.map(process, range(size)))
    assert all(shapes == lockstep.shapes[0] for shapes in lockstep.shapes)
    return found


def rows_of(plans: Plans) -> Callable[[int, np.ndarray], np.ndarray]:
    return lambda epoch, positions: plans[epoch].rows_at(positions)


def steps_of_world(
    worlds: list[Plans], settings: dict[str, Any], *, start: int, end: int
) -> Iterator[list[Step]]:
    """Each step's records of all ranks."""
    split = FakeSplit(np.random.default_rng(0).integers(3, 40, NUM_ROWS))
    loaders = [
        StepLoader(
            split=split,
            rows_at=rows_of(plans),
            rank=rank,
            size=len(worlds),
            seed=5,
            batch_size=BATCH,
            window=settings["window"],
            micro_tokens=300,
            pad_token_id=0,
        ).steps(start_step=start, epochs=EPOCHS, max_steps=end)
        for rank, plans in enumerate(worlds)
    ]
    for steps in zip(*loaders, strict=True):
        yield list(steps)


def global_batch(steps: list[Step]) -> np.ndarray:
    """Rows [G] in the order of their places, out of all ranks' micro-batches; each place is filled once."""
    found: dict[int, int] = {}
    for step in steps:
        for batch in step.batches:
            assert batch.positions_B is not None
            real = batch.is_real_B
            for place, row in zip(batch.positions_B[real].tolist(), batch.ids_B[real].tolist(), strict=True):
                assert place not in found
                found[place] = row
    assert sorted(found) == list(range(steps[0].counts.sequences))
    return np.array([found[place] for place in range(len(found))])


def reference(settings: dict[str, Any]) -> list[np.ndarray]:
    """Every global batch of the run, from plans of a single process."""
    split = FakeSplit(np.random.default_rng(0).integers(3, 40, NUM_ROWS))
    plans = [build_plan(spec_of(epoch, settings), ranked(settings)) for epoch in range(EPOCHS)]
    epochs = [
        EpochPlan(
            lengths=split.lengths,
            num_rows=NUM_ROWS,
            batch_size=BATCH,
            window=settings["window"],
            rows_at=rows_of(plans),
            seed=5,
            epoch=epoch,
        )
        for epoch in range(EPOCHS)
    ]
    return [epochs[epoch].global_batch(step) for epoch in range(EPOCHS) for step in range(STEPS)]


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda settings: settings["pacing"])
def test_any_world_and_a_change_of_it_give_the_same_global_batches(settings: dict[str, Any]) -> None:
    expected = reference(settings)
    assert NUM_ROWS % BATCH
    assert min(map(len, expected)) < BATCH
    assert not np.array_equal(expected[0], expected[STEPS])
    built = {size: plans_of_world(size, settings) for size in WORLDS}
    for size, worlds in built.items():
        found = [
            global_batch(steps) for steps in steps_of_world(worlds, settings, start=0, end=STEPS * EPOCHS)
        ]
        assert len(found) == len(expected)
        assert all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True)), size
    # stopped at 10, 17, 31 and 40, in the middle of windows, epochs and stages; each time another world goes on
    cuts = [0, 10, 17, 31, 40, STEPS * EPOCHS]
    changed = [
        global_batch(steps)
        for size, start, end in zip((3, 8, 1, 5, 7), cuts[:-1], cuts[1:], strict=True)
        for steps in steps_of_world(built[size], settings, start=start, end=end)
    ]
    assert all(np.array_equal(a, b) for a, b in zip(changed, expected, strict=True))


@pytest.mark.parametrize("settings", SETTINGS[:2], ids=lambda settings: settings["pacing"])
def test_length_windows_hold_rows_of_their_pool_alone(settings: dict[str, Any]) -> None:
    """Rows are mixed inside a window of batches: its pool is the one with which it begins."""
    batches = reference(settings)
    for epoch in range(EPOCHS):
        plan = build_plan(spec_of(epoch, settings), ranked(settings))
        classes = np.concatenate([plan.classes_of(block) for block in range(len(plan.ranked.sizes))])
        for step in range(STEPS):
            pool, _ = plan.pool(step // settings["window"] * settings["window"])
            assert (classes[batches[epoch * STEPS + step]] < pool).all()
        assert epoch or plan.pool(0)[0] < plan.spec.classes


@pytest.mark.parametrize("size", [2, 8])
def test_processes_without_a_shard_build_the_same_plan(size: int) -> None:
    values = confidence("ties", 40)
    rows = Ranked(np.array([40]), lambda _: values)
    spec = PlanSpec(seed=1, epoch=0, batch_size=64, stages=spec_of(0, SETTINGS[0]).stages)
    lockstep = Lockstep(size)
    with ThreadPoolExecutor(size) as pool:
        plans = list(
            pool.map(
                lambda rank: build_plan(spec, rows, rank=rank, size=size, reduce=lockstep.reduce_of(rank)),
                range(size),
            )
        )
    expected = build_plan(spec, rows).rows_at(np.arange(40))
    assert all(np.array_equal(plan.rows_at(np.arange(40)), expected) for plan in plans)

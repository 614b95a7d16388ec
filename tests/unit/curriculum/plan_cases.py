"""Plans over rows with ties, NaNs and ragged shards of a single class, and what numpy's sort says of them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from curriculum.test_selection import confidence, sorted_rows
from distill_dist.curriculum.pacing import WHOLE, Pacing, Stage, stages_of_epoch
from distill_dist.curriculum.plan import Plan, PlanSpec, Ranked, build_plan

SEED = 11  # of test_selection's sort
FULL = (Stage(0, WHOLE),)


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

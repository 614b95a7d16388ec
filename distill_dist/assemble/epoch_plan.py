"""The plan of one epoch, from a run's configuration and a snapshot; read back where a file has it."""

from __future__ import annotations

import hashlib
import json
import logging
from pathlib import Path

import numpy as np

from distill_dist.comm.students import StudentGroup
from distill_dist.config.schema import RunConfig
from distill_dist.curriculum.pacing import Pacing, stages_of_epoch
from distill_dist.curriculum.plan import Plan, PlanSpec, Ranked, build_plan, load_plan
from distill_dist.curriculum.snapshot import Snapshot

_log = logging.getLogger(__name__)


def plan_spec(
    config: RunConfig, *, epoch: int, steps_per_epoch: int, total_steps: int, groups: int, ranks: bool
) -> PlanSpec:
    """What determines the order of ``epoch`` besides scores and shards.

    ``ranks``: by difficulty, or by the hash that stands for it; else a random order, kept inside windows of shards.
    """
    curriculum = config.curriculum
    assert curriculum.start is not None
    pacing = Pacing(
        curriculum.pacing if ranks else "none",
        total_steps,
        start=curriculum.start,
        full_at=curriculum.full_at,
        power=curriculum.power,
        increase=curriculum.increase,
        increase_every=curriculum.increase_every,
    )
    stages = stages_of_epoch(
        pacing, epoch=epoch, steps_per_epoch=steps_per_epoch, align=config.batch.length_window
    )
    return PlanSpec(
        seed=config.seed,
        epoch=epoch,
        batch_size=config.batch.size,
        stages=tuple(stages),
        buckets=curriculum.buckets if ranks else 1,
        direction="hard_to_easy" if curriculum.order == "hard_to_easy" else "easy_to_hard",
        unscored=curriculum.unscored,
        once_per_pass=curriculum.once_per_pass,
        groups=groups if ranks else 1,
        window_shards=config.data.window_shards,
    )


def ranked_rows(
    sizes: np.ndarray, snapshot: Snapshot | None, groups: np.ndarray | None, *, by_score: bool
) -> Ranked:
    """The rows of shards of ``sizes`` as the plan ranks them; all alike, so by the seeded hash, without scores."""
    starts = np.concatenate([[0], np.cumsum(sizes)])

    def alike(block: int) -> np.ndarray:
        return np.zeros(int(sizes[block]), np.float32)

    def groups_of(block: int) -> np.ndarray:
        assert groups is not None
        return groups[starts[block] : starts[block + 1]]

    scores = snapshot.scores if by_score and snapshot is not None else alike
    return Ranked(sizes, scores, None if groups is None else groups_of)


def make_plan(
    spec: PlanSpec, ranked: Ranked, group: StudentGroup, folder: Path, *, scored_by: str, memory_bytes: int
) -> Plan:
    """The plan on all students; from its file in ``folder`` where that is there, so that a resumed run starts at once.

    ``scored_by`` names the rows and their scores.
    """
    if 2 * ranked.num_rows > memory_bytes:
        _log.warning(
            "the order inside shards takes %d MiB and curriculum.memory_mib is %d: shards will be sorted again and "
            "again; raise it where there is memory", 2 * ranked.num_rows >> 20, memory_bytes >> 20,
        )  # fmt: skip
    path = folder / f"plan-{spec.epoch:05d}.npz"
    key = hashlib.sha256(json.dumps([repr(spec), scored_by]).encode()).hexdigest()
    plan = load_plan(path, key, spec, ranked, memory_bytes=memory_bytes)
    if group.agree(int(plan is None)) or plan is None:
        plan = build_plan(
            spec,
            ranked,
            rank=group.rank,
            size=group.size,
            reduce=group.sum_integers,
            memory_bytes=memory_bytes,
        )
        if group.rank == 0:
            _keep(plan, path, key)
    return plan


def _keep(plan: Plan, path: Path, key: str) -> None:
    """It saves a resumed run the time to make it again, no more."""
    try:
        path.parent.mkdir(exist_ok=True)
        for old in path.parent.glob("plan-*.npz"):
            old.unlink()
        plan.save(path, key)
    except OSError as error:
        _log.warning("the epoch's plan is not kept: %s", error)

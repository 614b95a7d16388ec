"""What an epoch's curriculum looks like, for TensorBoard and the log: computed shard by shard, summed over students."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

import numpy as np

from distill_dist.assemble.curriculum import Curriculum, EpochCurriculum
from distill_dist.curriculum.percentiles import Percentiles
from distill_dist.curriculum.plan import Plan
from distill_dist.curriculum.snapshot import Snapshot
from distill_dist.curriculum.study import (
    LAMBDA_EDGES,
    PARTS,
    class_counts,
    confidence_edges,
    exposure,
    histogram,
    movement,
    transitions,
)
from distill_dist.telemetry import Telemetry

_log = logging.getLogger(__name__)


@dataclass
class CurriculumReport:
    """Calls are collectives of all students; student 0 writes."""

    curriculum: Curriculum
    telemetry: Telemetry
    labels: np.ndarray  # int [rows]
    class_names: tuple[str, ...]
    measure: str
    _before: Percentiles | None = field(default=None)

    def __call__(self, done: int) -> None:
        """Report the epoch that is open, at step ``done``."""
        now = self.curriculum.now
        begins = done == now.epoch * self.curriculum.steps_per_epoch
        if now.plan is not None:
            self._admission(now, now.plan, done, begins=begins)
        if now.snapshot is not None and begins:  # a run that goes on in mid-epoch has said it before
            self._scores(now, now.snapshot, done)
        self._before = now.percentiles

    def _admission(self, now: EpochCurriculum, plan: Plan, done: int, *, begins: bool) -> None:
        first = now.epoch * self.curriculum.steps_per_epoch
        for stage in plan.spec.stages:
            share = plan.pool(stage.first_step)[1] / plan.ranked.num_rows
            if first + stage.first_step >= done:
                self.telemetry.write(first + stage.first_step, {"curriculum/admitted_share": share})
        if not begins or now.snapshot is None or self.curriculum.config.curriculum.order == "random":
            return
        levels = (len(plan.spec.cuts) + 1, plan.spec.groups)
        served = plan.draws().reshape(levels).sum(axis=1)
        rows = plan.counts.sum(axis=0, dtype=np.int64).reshape(levels).sum(axis=1)
        if plan.spec.direction == "hard_to_easy":
            served, rows = served[::-1], rows[::-1]
        times = exposure(served, rows)
        self.telemetry.write(
            first, {f"exposure/decile_{part + 1:02d}": float(value) for part, value in enumerate(times)}
        )

    def _scores(self, now: EpochCurriculum, snapshot: Snapshot, done: int) -> None:
        # a file's scores may be any numbers: they have no bins
        given = snapshot.record.origin.measure == "file"
        edges = (
            np.array([-np.inf, np.inf]) if given else confidence_edges(self.measure, len(self.class_names))
        )
        counts = self._count(now, snapshot, edges)
        shown = {} if given else {"curriculum/confidence": (counts["confidence"], edges)}
        if "reliance" in counts:
            shown["curriculum/reliance"] = (counts["reliance"], LAMBDA_EDGES)
        self.telemetry.histograms(done, shown)
        record = snapshot.record
        scalars = {
            "curriculum/nan": float(record.num_nan),
            "curriculum/unscored": float(record.num_unscored),
        }
        if "admitted" in counts:
            admitted = counts["admitted"] / max(1, counts["admitted"].sum())
            names = (f"admitted/{name}" for name in self.class_names)
            scalars |= dict(zip(names, admitted.tolist(), strict=True))
            self._warn_of_starved(admitted)
        if "moved" in counts:
            moved = movement(counts["moved"])
            scalars |= {"curriculum/moved_share": moved.share, "curriculum/rank_correlation": moved.spearman}
        self.telemetry.write(done, scalars)
        if record.num_nan or record.num_unscored:
            _log.warning(
                "%s: %d rows gave no number, %d rows have no score", snapshot.name, record.num_nan, record.num_unscored
            )  # fmt: skip

    def _warn_of_starved(self, admitted: np.ndarray) -> None:
        """``admitted``: each class's share of the pool."""
        everywhere = np.bincount(self.labels, minlength=len(self.class_names)) / len(self.labels)
        for name, share, usual in zip(self.class_names, admitted, everywhere, strict=True):
            if share < usual / 2:
                _log.warning(
                    "class %s is %.0f %% of the rows but %.0f %% of the pool, since the model is sure of others: "
                    "curriculum.stratify=label ranks within each class", name, 100 * usual, 100 * share,
                )  # fmt: skip

    def _count(self, now: EpochCurriculum, snapshot: Snapshot, edges: np.ndarray) -> dict[str, np.ndarray]:
        """Integer counts over all rows of all students."""
        group, plan = self.curriculum.group, now.plan
        found = {"confidence": np.zeros(len(edges) - 1, np.int64)}
        if now.reliance is not None:
            found["reliance"] = np.zeros(len(LAMBDA_EDGES) - 1, np.int64)
        if plan is not None:
            found["admitted"] = np.zeros(len(self.class_names), np.int64)
        if self._before is not None and now.percentiles is not None:
            found["moved"] = np.zeros((PARTS, PARTS), np.int64)
        for block in range(group.rank, snapshot.num_blocks, group.size):
            rows = np.arange(snapshot.starts[block], snapshot.starts[block + 1])
            found["confidence"] += histogram(snapshot.scores(block), edges)
            if now.reliance is not None:
                found["reliance"] += histogram(now.reliance.of(rows), LAMBDA_EDGES)
            if plan is not None:
                admitted = plan.classes_of(block) < plan.pool(0)[0]
                found["admitted"] += class_counts(self.labels[rows], admitted, len(self.class_names))
            if "moved" in found:
                assert self._before is not None
                assert now.percentiles is not None
                found["moved"] += transitions(_decile(self._before, rows), _decile(now.percentiles, rows))
        return {name: group.sum_integers(values) for name, values in found.items()}


def _decile(percentiles: Percentiles, rows: np.ndarray) -> np.ndarray:
    """Edges of deciles are edges of the percentiles' parts, so a part's middle tells."""
    return np.minimum((percentiles.at(rows) * PARTS).astype(np.int64), PARTS - 1)

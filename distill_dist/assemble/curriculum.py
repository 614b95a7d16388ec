"""The order of a run's rows and how far each relies on its teacher, epoch by epoch."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from distill_dist.assemble.epoch_plan import make_plan, plan_spec, ranked_rows
from distill_dist.assemble.epoch_reliance import make_percentiles, make_reliance
from distill_dist.assemble.scores_of_run import ScoresOfRun
from distill_dist.comm.students import StudentGroup
from distill_dist.config.methods import has_curriculum, reads_scores, relies_selectively
from distill_dist.config.schema import RunConfig
from distill_dist.curriculum.order import RandomOrder
from distill_dist.curriculum.percentiles import Percentiles
from distill_dist.curriculum.plan import Plan
from distill_dist.curriculum.reliance import Reliance
from distill_dist.curriculum.snapshot import Snapshot
from distill_dist.data.shards import PreparedSplit
from distill_dist.run_folder import RunFolder

_log = logging.getLogger(__name__)


@dataclass
class EpochCurriculum:
    """What holds during one epoch."""

    epoch: int
    snapshot: Snapshot | None = None  # the newest scores; None: nothing is known yet
    percentiles: Percentiles | None = None
    plan: Plan | None = None  # None: a seeded random order of all rows
    reliance: Reliance | None = None  # None: λ is the same for all rows


@dataclass
class Curriculum:
    """``open_epoch`` is a collective of all students; what it leaves in ``now`` is the same on each."""

    config: RunConfig
    split: PreparedSplit
    groups: np.ndarray | None  # int [rows]: what ranks apart (`curriculum.stratify`)
    group: StudentGroup
    folder: RunFolder
    scores: ScoresOfRun
    steps_per_epoch: int
    total_steps: int
    now: EpochCurriculum = field(default_factory=lambda: EpochCurriculum(-1))

    def open_epoch(self, done: int) -> None:
        """Scores, plan and reliance of the epoch that step ``done`` lies in. Raises UserError, Interrupted."""
        epoch = done // self.steps_per_epoch
        begin = time.monotonic()
        self._recover()
        snapshot = self.scores.of_epoch(epoch, done)
        self.now = EpochCurriculum(epoch, snapshot)
        if snapshot is not None:
            self.now.percentiles = make_percentiles(self.config, snapshot, self.group)
        ranks = has_curriculum(self.config) and (snapshot is not None or self._ranks_by_hash(epoch))
        if ranks or self.config.data.window_shards:
            self.now.plan = self._plan(self.now, ranks=ranks)
        if relies_selectively(self.config):
            self.now.reliance = make_reliance(
                self.config, self.split.num_rows, snapshot, self.now.percentiles, self.group
            )
        if ranks or self.now.plan is not None or reads_scores(self.config):
            _log.info("epoch %d: %s, ready in %.2f s", epoch, self._describe(), time.monotonic() - begin)

    def finish(self, done: int) -> None:
        """The last epoch's snapshot, for study (`curriculum.final_snapshot`)."""
        self._recover()
        self.scores.final(done)

    def _recover(self) -> None:
        """Before anything is read; a run that died in its last moments opens no epoch when it is started again."""
        if self.now.epoch < 0:
            self.scores.maker.recover(self.folder.plans)

    def rows_at(self, epoch: int, positions: np.ndarray) -> np.ndarray:
        """The loader's order; of the epoch that is open."""
        assert epoch == self.now.epoch, (epoch, self.now.epoch)
        if self.now.plan is None:
            return RandomOrder(self.split.num_rows, self.config.seed).rows_at(epoch, positions)
        return self.now.plan.rows_at(positions)

    def reliance_of(self, rows: np.ndarray) -> np.ndarray | None:
        """λ of ``rows``; None where it is the same for all."""
        return None if self.now.reliance is None else self.now.reliance.of(rows)

    def confidence_of(self, rows: np.ndarray) -> np.ndarray | None:
        """The snapshot's scores of ``rows``; None before the first."""
        return None if self.now.snapshot is None else self.now.snapshot.scores_at(rows)

    def describe(self) -> dict[str, Any] | None:
        """For summary.json; None where neither order nor reliance is any curriculum's."""
        settings = self.config.curriculum
        if not (has_curriculum(self.config) or reads_scores(self.config)):
            return None
        return {
            "order": settings.order,
            "pacing": settings.pacing if has_curriculum(self.config) else None,
            "reliance": self.config.reliance.rule,
            "snapshot": self.state_dict() or None,
            "scoring_s": round(sum(self.scores.maker.spent_s), 3),
        }

    def state_dict(self) -> dict[str, Any]:
        """For the checkpoint: which scores the open epoch was planned on."""
        snapshot = self.now.snapshot
        return {} if snapshot is None else {"number": snapshot.record.number, "hash": snapshot.hash}

    def _ranks_by_hash(self, epoch: int) -> bool:
        """`random` reads no scores, but begins when the order that it is compared with would."""
        curriculum = self.config.curriculum
        return curriculum.order == "random" and (epoch > 0 or curriculum.source != "student")

    def _plan(self, now: EpochCurriculum, *, ranks: bool) -> Plan:
        groups = self.groups if ranks else None
        spec = plan_spec(
            self.config,
            epoch=now.epoch,
            steps_per_epoch=self.steps_per_epoch,
            total_steps=self.total_steps,
            groups=1 if groups is None else int(groups.max()) + 1,
            ranks=ranks,
        )
        by_score = ranks and self.config.curriculum.order != "random"
        rows = ranked_rows(self.split.block_sizes, now.snapshot, groups, by_score=by_score)
        scores = self.scores.maker.manifest if now.snapshot is None else now.snapshot.hash
        scored_by = f"{scores} {self.config.curriculum.stratify}"
        memory = self.config.curriculum.memory_mib << 20
        return make_plan(spec, rows, self.group, self.folder.plans, scored_by=scored_by, memory_bytes=memory)

    def _describe(self) -> str:
        scores = "no scores yet" if self.now.snapshot is None else f"scores of {self.now.snapshot.name}"
        if self.now.plan is None:
            return f"{scores}, everything admitted in random order"
        rows = self.now.plan.pool(0)[1]
        return f"{scores}, {rows} of {self.split.num_rows} rows admitted at its start"

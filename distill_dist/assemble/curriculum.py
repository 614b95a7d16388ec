"""The order of a run's rows and how far each relies on its teacher, epoch by epoch."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from distill_dist.assemble.snapshots import SnapshotMaker
from distill_dist.comm.students import StudentGroup
from distill_dist.config.methods import has_curriculum, reads_scores, relies_selectively
from distill_dist.config.schema import RunConfig
from distill_dist.curriculum.keys import score_keys
from distill_dist.curriculum.order import RandomOrder
from distill_dist.curriculum.pacing import Pacing, stages_of_epoch
from distill_dist.curriculum.percentiles import Percentiles, percentile_ranks
from distill_dist.curriculum.plan import Plan, PlanSpec, Ranked, build_plan, load_plan
from distill_dist.curriculum.reliance import Reliance, fixed_point_sum, mean_from
from distill_dist.curriculum.score_file import scores_from_file
from distill_dist.curriculum.selection import select
from distill_dist.curriculum.snapshot import Snapshot
from distill_dist.curriculum.snapshot_record import folder_name
from distill_dist.data.shards import PreparedSplit
from distill_dist.errors import UserError
from distill_dist.evaluation.split import SignalSource
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
    maker: SnapshotMaker
    student: SignalSource
    teacher: SignalSource | None
    steps_per_epoch: int
    total_steps: int
    logs: Callable[[], list[Path]]  # the score logs of `curriculum.score: served`
    pinned: dict[str, Any] | None = None  # the checkpoint's {"number", "hash"}: what its epoch was planned on
    now: EpochCurriculum = field(default_factory=lambda: EpochCurriculum(-1))

    def open_epoch(self, done: int) -> None:
        """Scores, plan and reliance of the epoch that step ``done`` lies in. Raises UserError, Interrupted."""
        epoch = done // self.steps_per_epoch
        begin = time.monotonic()
        if self.now.epoch < 0:
            self.maker.recover(self._plans)
        snapshot = self._snapshot_of(epoch, done)
        self.now = EpochCurriculum(epoch, snapshot)
        if snapshot is not None:
            self.now.percentiles = self._percentiles(snapshot)
        ranks = has_curriculum(self.config) and (snapshot is not None or self._ranks_by_hash(epoch))
        if ranks or self.config.data.window_shards:
            self.now.plan = self._plan(epoch, ranks=ranks)
        if relies_selectively(self.config):
            self.now.reliance = self._reliance(snapshot)
        _log.info("epoch %d: %s, ready in %.2f s", epoch, self._describe(), time.monotonic() - begin)

    def finish(self, done: int) -> None:
        """The last epoch's snapshot, for study (`curriculum.final_snapshot`)."""
        if self.config.curriculum.source == "student" and reads_scores(self.config):
            self._snapshot_of(done // self.steps_per_epoch, done)

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
            "scoring_s": round(sum(self.maker.spent_s), 3),
        }

    def state_dict(self) -> dict[str, Any]:
        """For the checkpoint: which scores the open epoch was planned on."""
        snapshot = self.now.snapshot
        return {} if snapshot is None else {"number": snapshot.record.number, "hash": snapshot.hash}

    # ------------------------------------------------------------------ scores

    def _number_of(self, epoch: int) -> int | None:
        """The snapshot that an epoch is planned on; None: it has none."""
        if not reads_scores(self.config):
            return None
        if self.config.curriculum.source != "student":
            return 0
        if self.config.curriculum.order == "frozen":
            epoch = min(epoch, 1)
        return epoch or None

    def _snapshot_of(self, epoch: int, done: int) -> Snapshot | None:
        number = self._number_of(epoch)
        if number is None:
            return None
        step = number * self.steps_per_epoch
        found = self._find(number, step)
        if found is None:
            if done != step and number:
                raise UserError(
                    f"{self.maker.root / folder_name(number)} is gone, and epoch {epoch} of the checkpoint at step "
                    f"{done} was planned on it: put a copy in its place, or remove the checkpoints after step {step} "
                    "and go on from there"
                )
            self._make(number, step)
            found = self._find(number, step)
            assert found is not None
        self._check_pinned(found)
        return found

    def _find(self, number: int, step: int) -> Snapshot | None:
        """The snapshot if it is there and of this run's rows; all students find the same."""
        folder = self.maker.root / folder_name(number)
        if self.group.agree(int(not (folder / "snapshot.json").is_file())):
            return None
        found, failed = None, None
        try:
            found = self._open(folder, step)
        except UserError as error:
            failed = error
        self.maker.agree_on(failed)
        return found

    def _open(self, folder: Path, step: int) -> Snapshot:
        found = Snapshot.open(folder)
        origin = found.record.origin
        if (origin.manifest, origin.run, origin.step) != (self.maker.manifest, self.maker.run, step):
            raise UserError(
                f"{folder} was made by a run of other rows or other settings than this one's: choose another run_dir, "
                "or remove that folder"
            )
        # a damaged score is told here, where all can agree on it, and not inside a sum that others wait in
        for block in range(self.group.rank, found.num_blocks, self.group.size):
            found.scores(block)
        return found

    def _check_pinned(self, found: Snapshot) -> None:
        pinned = self.pinned
        if pinned and pinned["number"] == found.record.number and pinned["hash"] != found.hash:
            raise UserError(
                f"{found.folder} is not the snapshot that the checkpoint's epoch was planned on (its hash is "
                f"{found.hash[:12]}, not {pinned['hash'][:12]}): put that one back, or remove the checkpoints after "
                f"step {found.record.origin.step} to go on from there with this one"
            )

    def _make(self, number: int, step: int) -> None:
        curriculum = self.config.curriculum
        if curriculum.source == "file":
            confidence = scores_from_file(Path(curriculum.file), self.split.num_rows)
            self.maker.from_file(number, confidence=confidence)
            return
        if curriculum.source == "teacher":
            assert self.teacher is not None
            self.maker.from_teacher(number, teacher=self.teacher)
            return
        previous = self._before(number, step)
        in_use = frozenset() if previous is None else {previous.name}
        if curriculum.score == "served":
            steps = (step - self.steps_per_epoch, step)
            self.maker.from_served(number, self.logs(), steps=steps, previous=previous, in_use=in_use)
            return
        teacher = self.teacher if previous is None else None  # its losses do not change
        self.maker.from_model(
            number, step=step, student=self.student, teacher=teacher, previous=previous, in_use=in_use
        )

    def _before(self, number: int, step: int) -> Snapshot | None:
        """The snapshot that number ``number`` continues; None for the first."""
        if number == 1:
            return None
        previous = self._find(number - 1, step - self.steps_per_epoch)
        if previous is None:
            raise UserError(
                f"{self.maker.root / folder_name(number - 1)} is gone, and {folder_name(number)} continues "
                "its averages: put a copy in its place, or start again in another run_dir"
            )
        return previous

    # ------------------------------------------------------------------ order

    @property
    def _plans(self) -> Path:
        return self.folder.path / "plans"

    def _ranks_by_hash(self, epoch: int) -> bool:
        """`random` reads no scores, but begins when the order that it is compared with would."""
        curriculum = self.config.curriculum
        return curriculum.order == "random" and (epoch > 0 or curriculum.source != "student")

    def _plan(self, epoch: int, *, ranks: bool) -> Plan:
        """``ranks``: by difficulty, or by the hash that stands for it; else a random order, kept inside windows."""
        curriculum = self.config.curriculum
        assert curriculum.start is not None
        pacing = Pacing(
            curriculum.pacing if ranks else "none",
            self.total_steps,
            start=curriculum.start,
            full_at=curriculum.full_at,
            power=curriculum.power,
            increase=curriculum.increase,
            increase_every=curriculum.increase_every,
        )
        stages = stages_of_epoch(
            pacing, epoch=epoch, steps_per_epoch=self.steps_per_epoch, align=self.config.batch.length_window
        )
        spec = PlanSpec(
            seed=self.config.seed,
            epoch=epoch,
            batch_size=self.config.batch.size,
            stages=tuple(stages),
            buckets=curriculum.buckets if ranks else 1,
            direction="hard_to_easy" if curriculum.order == "hard_to_easy" else "easy_to_hard",
            unscored=curriculum.unscored,
            once_per_pass=curriculum.once_per_pass,
            groups=1 if self.groups is None or not ranks else int(self.groups.max()) + 1,
            window_shards=self.config.data.window_shards,
        )
        return self._built(spec, self._ranked(ranks=ranks))

    def _built(self, spec: PlanSpec, ranked: Ranked) -> Plan:
        """From its file where that is there, so that a resumed run starts at once."""
        path = self._plans / f"plan-{spec.epoch:05d}.npz"
        scores = "" if self.now.snapshot is None else self.now.snapshot.hash
        key = hashlib.sha256(json.dumps([repr(spec), scores, self.maker.manifest]).encode()).hexdigest()
        memory = self.config.curriculum.memory_mib << 20
        plan = load_plan(path, key, spec, ranked, memory_bytes=memory)
        if self.group.agree(int(plan is None)) or plan is None:
            plan = build_plan(
                spec,
                ranked,
                rank=self.group.rank,
                size=self.group.size,
                reduce=self.group.sum_integers,
                memory_bytes=memory,
            )
            if self.group.rank == 0:
                path.parent.mkdir(exist_ok=True)
                for old in path.parent.glob("plan-*.npz"):
                    old.unlink()
                plan.save(path, key)
        return plan

    def _ranked(self, *, ranks: bool) -> Ranked:
        sizes, snapshot, groups = self.split.block_sizes, self.now.snapshot, self.groups if ranks else None
        starts = np.concatenate([[0], np.cumsum(sizes)])

        def alike(block: int) -> np.ndarray:
            return np.zeros(int(sizes[block]), np.float32)  # all ties: ranked by the seeded hash

        def groups_of(block: int) -> np.ndarray:
            assert groups is not None
            return groups[starts[block] : starts[block + 1]]

        by_score = ranks and self.config.curriculum.order != "random"
        scores = snapshot.scores if by_score and snapshot is not None else alike
        return Ranked(sizes, scores, None if groups is None else groups_of)

    # ------------------------------------------------------------------ difficulty and reliance

    def _percentiles(self, snapshot: Snapshot) -> Percentiles:
        unscored = self.config.curriculum.unscored
        ranks = percentile_ranks(snapshot.num_rows, self.config.reliance.threshold)
        mine = range(self.group.rank, snapshot.num_blocks, self.group.size)

        def blocks() -> Iterator[tuple[int, np.ndarray]]:
            for block in mine:
                keys = score_keys(snapshot.scores(block), direction="easy_to_hard", unscored=unscored)
                yield int(snapshot.starts[block]), keys

        levels = select(blocks, ranks, seed=self.config.seed, reduce=self.group.sum_integers)
        return Percentiles(levels, tuple(ranks), snapshot.num_rows, unscored, snapshot.scores_at)

    def _reliance(self, snapshot: Snapshot | None) -> Reliance:
        settings = self.config.reliance
        assert settings.initial is not None
        assert settings.maximum is not None
        assert settings.rule != "constant"
        known = self.now.percentiles is not None and snapshot is not None
        found = Reliance(
            rule=settings.rule,
            initial=settings.initial,
            minimum=settings.minimum,
            maximum=settings.maximum,
            threshold=settings.threshold,
            num_rows=self.split.num_rows,
            seed=self.config.seed,
            control=settings.control if known else "none",
            score_is_probability=self.config.curriculum.measure == "true_probability",
            percentile_at=self.now.percentiles.at if self.now.percentiles is not None else None,
            column_at=snapshot.column_at if snapshot is not None else None,
        )
        if found.control != "mean_matched" or snapshot is None:
            return found
        return replace(found, mean=self._mean(found, snapshot))

    def _mean(self, reliance: Reliance, snapshot: Snapshot) -> float:
        total = unknown = 0
        for block in range(self.group.rank, snapshot.num_blocks, self.group.size):
            rows = np.arange(snapshot.starts[block], snapshot.starts[block + 1])
            found, lacking = reliance.ruled(rows)
            total += fixed_point_sum(found)
            unknown += lacking
        total, unknown = self.group.sum_integers(np.array([total, unknown])).tolist()
        if unknown:
            _log.warning("%d rows have no number for the rule: their λ is reliance.initial", unknown)
        return mean_from(total, snapshot.num_rows)

    def _describe(self) -> str:
        scores = "no scores yet" if self.now.snapshot is None else f"scores of {self.now.snapshot.name}"
        if self.now.plan is None:
            return f"{scores}, everything admitted in random order"
        rows = self.now.plan.pool(0)[1]
        return f"{scores}, {rows} of {self.split.num_rows} rows admitted at its start"

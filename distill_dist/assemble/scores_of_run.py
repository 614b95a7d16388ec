"""Which snapshot of scores an epoch is planned on: found, or made when it is due."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from distill_dist.assemble.agreement import agree_on
from distill_dist.assemble.snapshots import SnapshotMaker
from distill_dist.config.methods import reads_scores
from distill_dist.config.schema import RunConfig
from distill_dist.curriculum.score_file import scores_from_file
from distill_dist.curriculum.snapshot import Snapshot
from distill_dist.curriculum.snapshot_record import folder_name
from distill_dist.durable import sha256_file
from distill_dist.errors import UserError
from distill_dist.evaluation.split import SignalSource


@dataclass(frozen=True)
class ScoresOfRun:
    """Every method is a collective of all students.

    Snapshot e is taken of the student after e epochs; number 0 is its teacher's, or a file's.
    """

    config: RunConfig
    maker: SnapshotMaker
    student: SignalSource
    teacher: SignalSource | None
    steps_per_epoch: int
    logs: Callable[[], list[Path]]  # the score logs of `curriculum.score: served`
    taught_by: str  # the fingerprint of the run's teachers, of whom snapshot 0 may be
    pinned: dict[str, Any] | None  # the checkpoint's {"number", "hash"}: what its epoch was planned on

    def _number_of(self, epoch: int) -> int | None:
        """The snapshot that an epoch is planned on; None: it has none."""
        if not reads_scores(self.config):
            return None
        if self.config.curriculum.source != "student":
            return 0
        if self.config.curriculum.order == "frozen":
            epoch = min(epoch, 1)
        return epoch or None

    def of_epoch(self, epoch: int, done: int) -> Snapshot | None:
        """The scores that ``epoch`` is planned on, made now where they are due; None: nothing is known yet.

        ``done`` is the step that the run stands at. Raises UserError, Interrupted, the same on all students.
        """
        number = self._number_of(epoch)
        if number is None:
            return None
        step = number * self.steps_per_epoch
        found = self._find(number, step)
        if found is not None and self._is_outdated(found):
            found = None
        if found is None:
            if done != step and number:
                self._refuse(
                    f"{self.maker.root / folder_name(number)} is gone, and epoch {epoch} of the checkpoint at step "
                    f"{done} was planned on it: put a copy in its place, or remove the checkpoints after step {step} "
                    "and go on from there"
                )
            self._make(number, step)
            found = self._find(number, step)
            assert found is not None
        self._check_pinned(found)
        self.maker.prune(number, in_use=self._in_use(number))
        return found

    def _find(self, number: int, step: int) -> Snapshot | None:
        """The snapshot if it is there and of this run's rows; all students find the same."""
        folder = self.maker.root / folder_name(number)
        if self.maker.group.agree(int(not (folder / "snapshot.json").is_file())):
            return None
        found, failed = None, None
        try:
            found = self._open(folder, step)
        except UserError as error:
            failed = error
        agree_on(self.maker.group, failed, place=self.maker.root)
        return found

    def _open(self, folder: Path, step: int) -> Snapshot:
        found = Snapshot.open(folder)
        origin = found.record.origin
        if (origin.manifest, origin.run, origin.step) != (self.maker.manifest, self.maker.run, step):
            raise UserError(
                f"{folder} was made by a run of other rows or other settings than this one's: choose another run_dir, "
                "or remove that folder"
            )
        # damage is told here, where all can agree on it, and not inside a sum that others wait in
        for block in range(self.maker.group.rank, found.num_blocks, self.maker.group.size):
            if self._reads_columns:
                found.columns(block)
            else:
                found.scores(block)
        return found

    @property
    def _reads_columns(self) -> bool:
        rule, measure = self.config.reliance.rule, self.config.curriculum.measure
        return rule == "weighted" or (rule == "bell" and measure != "true_probability")

    def _is_outdated(self, found: Snapshot) -> bool:
        """Whether teacher or `curriculum.file` are others than the scores are of; all students say the same."""
        if self.config.curriculum.source == "teacher":
            # with a checkpoint the teachers were compared with those that it names (same_teachers.py)
            changed = not self.pinned and found.record.origin.parent != self.taught_by
            return bool(self.maker.group.agree(int(changed)))
        if self.config.curriculum.source != "file":
            return False
        file, changed = Path(self.config.curriculum.file), False
        if self.maker.group.rank == 0 and file.is_file():
            changed = sha256_file(file) != found.record.origin.parent
        if not self.maker.group.agree(int(changed)):
            return False
        if self.pinned:
            self._refuse(
                f"curriculum.file={file} has changed since the run began: put the old one back, or start in another "
                "run_dir"
            )
        return True

    def final(self, done: int) -> None:
        """A snapshot of the student after its last epoch, for study, if there is none."""
        number = done // self.steps_per_epoch
        if self._find(number, done) is None:
            self._make(number, done)
        self.maker.prune(number, in_use=self._in_use(number))

    def _check_pinned(self, found: Snapshot) -> None:
        pinned = self.pinned
        if pinned and pinned["number"] == found.record.number and pinned["hash"] != found.hash:
            self._refuse(
                f"{found.folder} is not the snapshot that the checkpoint's epoch was planned on (its hash is "
                f"{found.hash[:12]}, not {pinned['hash'][:12]}): put that one back, or remove the checkpoints after "
                f"step {found.record.origin.step} to go on from there with this one"
            )

    def _make(self, number: int, step: int) -> None:
        curriculum = self.config.curriculum
        if curriculum.source == "file":
            file = Path(self.config.curriculum.file)
            self.maker.from_file(number, confidence=self._from_file(), sha256=sha256_file(file))
            return
        if curriculum.source == "teacher":
            assert self.teacher is not None
            self.maker.from_teacher(number, teacher=self.teacher, fingerprint=self.taught_by)
            return
        previous, in_use = self._before(number, step), self._in_use(number)
        if curriculum.score == "served" and reads_scores(self.config):
            steps = (step - self.steps_per_epoch, step)
            self.maker.from_served(number, self.logs(), steps=steps, previous=previous, in_use=in_use)
            return
        teacher = self.teacher if previous is None else None  # its losses do not change
        self.maker.from_model(
            number, step=step, student=self.student, teacher=teacher, previous=previous, in_use=in_use
        )

    def _from_file(self) -> np.ndarray:
        confidence, failed = np.empty(0, np.float32), None
        try:
            confidence = scores_from_file(Path(self.config.curriculum.file), len(self.maker.labels))
        except UserError as error:  # perhaps on one host alone
            failed = error
        agree_on(self.maker.group, failed, place=self.maker.root)
        return confidence

    def _refuse(self, reason: str) -> None:
        """Raise what all students found alike; one of them says it."""
        agree_on(self.maker.group, UserError(reason), place=self.maker.root)

    def _in_use(self, number: int) -> frozenset[str]:
        """What the epoch before ``number`` was planned on: continued by it, compared with it, or frozen."""
        before = self._number_of(number - 1)
        return frozenset() if before is None else frozenset({folder_name(before)})

    def _before(self, number: int, step: int) -> Snapshot | None:
        """The snapshot that number ``number`` continues; None for the first."""
        continues = reads_scores(self.config) and self.config.curriculum.order != "frozen"
        if number == 1 or not continues:
            return None
        previous = self._find(number - 1, step - self.steps_per_epoch)
        if previous is None:
            self._refuse(
                f"{self.maker.root / folder_name(number - 1)} is gone, and {folder_name(number)} continues "
                "its averages: put a copy in its place, or start again in another run_dir"
            )
        return previous

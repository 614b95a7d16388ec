"""Makes the snapshots of a run: the confidence of every row, from the student, its teacher or a file."""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable, Set
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from distill_dist.comm.students import StudentGroup
from distill_dist.curriculum.scores import Columns, Fresh, advance, cross_entropy, fresh_from_logits, given
from distill_dist.curriculum.served import Latest, latest
from distill_dist.curriculum.snapshot import Snapshot
from distill_dist.curriculum.snapshot_record import BlockEntry, Origin, entries_of, entries_table, folder_name
from distill_dist.curriculum.snapshot_writer import SnapshotWriter, tidy
from distill_dist.durable import remove_stale
from distill_dist.errors import Interrupted, UserError
from distill_dist.evaluation.scoring import ScoringPass
from distill_dist.evaluation.split import SignalSource

_log = logging.getLogger(__name__)
# Blocks for which the score logs are read at once: 23 bytes a row are held meanwhile.
_SPAN_BLOCKS = 512

BlockScores = Callable[[int], tuple[Fresh | None, Columns | None]]
"""Block -> what is new of its rows, or their columns as they are given; on the process that writes it at least."""


@dataclass(frozen=True)
class SnapshotMaker:
    """Every method is a collective of all students. Each shard's file is written by one of them."""

    root: Path
    group: StudentGroup
    scoring: ScoringPass
    labels: np.ndarray  # int [rows]
    manifest: str  # hash of the rows
    run: str  # digest of what determines this run
    measure: str
    smoothing: float
    keep: int
    with_teacher_loss: bool
    should_stop: Callable[[], bool]
    evaluating: Callable[[], AbstractContextManager[None]]
    spent_s: list[float] = field(default_factory=list)  # per snapshot that this process helped to make

    def recover(self, plans: Path) -> None:
        """Put back or remove what a crash left of snapshots and of ``plans``, before either is looked for."""

        def work() -> None:
            tidy(self.root)
            remove_stale(plans, "plan-*.npz")

        self._alone(work)

    def from_model(
        self, number: int, *, step: int, student: SignalSource, teacher: SignalSource | None,
        previous: Snapshot | None, in_use: Set[str],
    ) -> None:  # fmt: skip
        """The frozen ``student`` reads every row. ``teacher``: whose loss is wanted beside and not known yet."""

        def scores(block: int) -> tuple[Fresh, None]:
            with self.evaluating():
                logits_NC = self.scoring.logits_NC(student, block)
            labels = self._labels_of(block)
            teacher_loss = None
            if teacher is not None and self.with_teacher_loss:
                teacher_loss = cross_entropy(self.scoring.logits_NC(teacher, block), labels)
            return fresh_from_logits(self.measure, logits_NC, labels, teacher_loss=teacher_loss), None

        self._write(number, scores, step=step, previous=previous, in_use=in_use)

    def from_teacher(self, number: int, *, teacher: SignalSource) -> None:
        """The teacher's own confidence, before training."""

        def scores(block: int) -> tuple[Fresh, None]:
            logits_NC, labels = self.scoring.logits_NC(teacher, block), self._labels_of(block)
            loss = cross_entropy(logits_NC, labels)
            return fresh_from_logits(self.measure, logits_NC, labels, teacher_loss=loss), None

        self._write(number, scores, step=0, previous=None, in_use=frozenset())

    def from_file(self, number: int, *, confidence: np.ndarray) -> None:
        """What the user gave, float32 [rows]."""

        def scores(block: int) -> tuple[None, Columns]:
            return None, given(confidence[self._rows_of(block)])

        self._write(number, scores, step=0, previous=None, in_use=frozenset(), measure="file")

    def from_served(
        self,
        number: int,
        logs: list[Path],
        *,
        steps: tuple[int, int],
        previous: Snapshot | None,
        in_use: Set[str],
    ) -> None:
        """The last that was logged of each row in ``steps`` (first, last + 1)."""

        @functools.lru_cache(maxsize=1)
        def span(number: int) -> Latest:
            first = number * _SPAN_BLOCKS
            last = min(first + _SPAN_BLOCKS, len(self.scoring.split.block_sizes)) - 1
            begin, end = self._rows_of(first).start, self._rows_of(last).stop
            return latest(logs, *steps, first_row=begin, num_rows=end - begin)

        def scores(block: int) -> tuple[Fresh | None, None]:
            if block % self.group.size != self.group.rank:
                return None, None
            begin = self._rows_of(block).start - self._rows_of(block - block % _SPAN_BLOCKS).start
            return span(block // _SPAN_BLOCKS).fresh(begin, self._labels_of(block)), None

        self._write(number, scores, step=steps[1], previous=previous, in_use=in_use)

    def _write(
        self, number: int, scores: BlockScores, *, step: int, previous: Snapshot | None, in_use: Set[str],
        measure: str | None = None,
    ) -> None:  # fmt: skip
        begin = time.monotonic()
        writer = SnapshotWriter(self.root, number)
        self._alone(writer.begin)
        entries: list[BlockEntry] = []
        failed: Exception | None = None
        for block in range(len(self.scoring.split.block_sizes)):
            self._go_on(number, failed)
            fresh, columns = scores(block)
            if block % self.group.size == self.group.rank:
                try:
                    entries.append(self._write_block(writer, block, fresh, columns, previous))
                except (UserError, OSError) as error:
                    failed = error
        self._go_on(number, failed)
        table = self.group.sum_integers(entries_table(entries, len(self.scoring.split.block_sizes)))
        origin = Origin(
            step=step,
            measure=measure or self.measure,
            smoothing=self.smoothing,
            manifest=self.manifest,
            parent="" if previous is None else previous.hash,
            run=self.run,
        )
        self._alone(
            functools.partial(writer.commit, entries_of(table), origin, keep=self.keep, in_use=in_use)
        )
        seconds = time.monotonic() - begin
        self.spent_s.append(seconds)
        _log.info("%s: %d rows scored in %.1f s", folder_name(number), len(self.labels), seconds)

    def _write_block(
        self, writer: SnapshotWriter, block: int, fresh: Fresh | None, columns: Columns | None,
        previous: Snapshot | None,
    ) -> BlockEntry:  # fmt: skip
        num_nan = 0
        if columns is None:
            assert fresh is not None
            before = None if previous is None else previous.columns(block)
            columns, num_nan = advance(before, fresh, smoothing=self.smoothing), fresh.num_nan
        return writer.write_block(block, columns, num_nan=num_nan)

    def _alone(self, work: Callable[[], object]) -> None:
        """``work()`` on student 0; nobody goes on before it is done. Raises UserError, Interrupted, on all students."""
        failed: Exception | None = None
        if self.group.rank == 0:
            try:
                work()
            except (UserError, OSError) as error:
                failed = error
        self.agree_on(failed)

    def _go_on(self, number: int, failed: Exception | None) -> None:
        """Between two blocks: all go on, or all end for the same reason."""
        if self.agree_on(failed, stop=self.should_stop()):
            raise Interrupted(
                f"stopped by a signal while {folder_name(number)} was made; the same command goes on from the last "
                "checkpoint and makes it again"
            )

    def agree_on(self, failed: Exception | None, *, stop: bool = False) -> bool:
        """Whether any student was told to stop. Raises, on all students, what failed on any; one of them says it."""
        first = self.group.size - self.group.rank  # larger on the earlier student
        word = int(stop) if failed is None else 2 if isinstance(failed, OSError) else 2 + first
        agreed = self.group.agree(word)
        if agreed == 2:
            reason = "another student says why" if failed is None else str(failed)
            raise Interrupted(
                f"{self.root} cannot be written ({reason}): make room; the same command then goes on"
            )
        if agreed > 2:
            error = (
                failed if isinstance(failed, UserError) else UserError("another student says what is wrong")
            )
            error.said = word != agreed
            raise error
        return agreed == 1

    def _rows_of(self, block: int) -> slice:
        sizes = self.scoring.split.block_sizes
        first = int(sizes[:block].sum())
        return slice(first, first + int(sizes[block]))

    def _labels_of(self, block: int) -> np.ndarray:
        return self.labels[self._rows_of(block)]

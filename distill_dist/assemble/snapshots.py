"""Makes the snapshots of a run: the confidence of every row, from the student, its teacher or a file."""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable, Set
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar, cast

import numpy as np

from distill_dist.assemble.agreement import agree_on, alone
from distill_dist.comm.students import StudentGroup
from distill_dist.curriculum.scores import Columns, Fresh, advance, cross_entropy, fresh_from_logits, given
from distill_dist.curriculum.served import Latest, latest
from distill_dist.curriculum.snapshot import Snapshot
from distill_dist.curriculum.snapshot_record import BlockEntry, Origin, entries_of, entries_table, folder_name
from distill_dist.curriculum.snapshot_writer import SnapshotWriter, prune, tidy
from distill_dist.durable import remove_stale
from distill_dist.errors import Interrupted, UserError
from distill_dist.evaluation.scoring import ScoringPass
from distill_dist.evaluation.split import SignalSource
from distill_dist.records import Batch

_log = logging.getLogger(__name__)
# Blocks for which the score logs are read at once: 23 bytes a row are held meanwhile.
_SPAN_BLOCKS = 512

T = TypeVar("T")
Batches = tuple[Batch, ...]


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

        alone(self.group, work, place=self.root)

    def prune(self, number: int, *, in_use: Set[str]) -> None:
        """As the commit of snapshot ``number`` would have, had no crash come between."""
        work = functools.partial(prune, self.root, self.keep, in_use, up_to=number)
        alone(self.group, work, place=self.root)

    def from_model(
        self, number: int, *, step: int, student: SignalSource, teacher: SignalSource | None,
        previous: Snapshot | None, in_use: Set[str],
    ) -> None:  # fmt: skip
        """The frozen ``student`` reads every row. ``teacher``: whose loss is wanted beside and not known yet."""

        def scores(block: int, batches: Batches) -> Fresh:
            with self.evaluating():
                logits_NC = self.scoring.logits_NC(student, block, batches)
            labels = self._labels_of(block)
            teacher_loss = None
            if teacher is not None and self.with_teacher_loss:
                teacher_loss = cross_entropy(self.scoring.logits_NC(teacher, block, batches), labels)
            return fresh_from_logits(self.measure, logits_NC, labels, teacher_loss=teacher_loss)

        self._write(number, self.scoring.batches, scores, step=step, previous=previous, in_use=in_use)

    def from_teacher(self, number: int, *, teacher: SignalSource, fingerprint: str) -> None:
        """The teacher's own confidence, before training; ``fingerprint`` says which teacher that is."""

        def scores(block: int, batches: Batches) -> Fresh:
            logits_NC, labels = self.scoring.logits_NC(teacher, block, batches), self._labels_of(block)
            loss = cross_entropy(logits_NC, labels)
            return fresh_from_logits(self.measure, logits_NC, labels, teacher_loss=loss)

        self._write(
            number,
            self.scoring.batches,
            scores,
            step=0,
            previous=None,
            in_use=frozenset(),
            parent=fingerprint,
        )

    def from_file(self, number: int, *, confidence: np.ndarray, sha256: str) -> None:
        """What the user gave, float32 [rows]; ``sha256`` of the file it came from."""

        def read(block: int) -> Columns:
            return given(confidence[self._rows_of(block)])

        def scores(block: int, columns: Columns) -> Columns:
            return columns

        self._write(
            number, read, scores, step=0, previous=None, in_use=frozenset(), measure="file", parent=sha256
        )

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

        def read(block: int) -> Fresh | None:
            if block % self.group.size != self.group.rank:
                return None
            begin = self._rows_of(block).start - self._rows_of(block - block % _SPAN_BLOCKS).start
            return span(block // _SPAN_BLOCKS).fresh(begin, self._labels_of(block))

        def scores(block: int, fresh: Fresh | None) -> Fresh | None:
            return fresh

        self._write(number, read, scores, step=steps[1], previous=previous, in_use=in_use)

    def _write(
        self, number: int, read: Callable[[int], T], scores: Callable[[int, T], Fresh | Columns | None], *,
        step: int, previous: Snapshot | None, in_use: Set[str], measure: str | None = None, parent: str = "",
    ) -> None:  # fmt: skip
        """``read`` gets what one student alone may fail to get; only then ``scores``, which may be a collective.

        What that gives (for the student that writes the block) is new of its rows, or their columns as they are given.
        """
        begin = time.monotonic()
        writer = SnapshotWriter(self.root, number)
        alone(self.group, writer.begin, place=self.root)
        entries: list[BlockEntry] = []
        failed: Exception | None = None
        for block in range(len(self.scoring.split.block_sizes)):
            content = None
            try:
                content = read(block)
            except (UserError, OSError) as error:
                failed = failed or error
            self._go_on(number, failed)
            found = scores(block, cast(T, content))
            if block % self.group.size == self.group.rank:
                assert found is not None
                try:
                    entries.append(self._write_block(writer, block, found, previous))
                except (UserError, OSError) as error:
                    failed = error
        self._go_on(number, failed)
        table = self.group.sum_integers(entries_table(entries, len(self.scoring.split.block_sizes)))
        origin = Origin(
            step=step,
            measure=measure or self.measure,
            smoothing=self.smoothing,
            manifest=self.manifest,
            parent=parent if previous is None else previous.hash,
            run=self.run,
        )
        commit = functools.partial(writer.commit, entries_of(table), origin, keep=self.keep, in_use=in_use)
        alone(self.group, commit, place=self.root)
        seconds = time.monotonic() - begin
        self.spent_s.append(seconds)
        scored = len(self.labels) - sum(entry.unscored for entry in entries_of(table))
        _log.info("%s: %d rows have a score, made in %.1f s", folder_name(number), scored, seconds)

    def _write_block(
        self, writer: SnapshotWriter, block: int, found: Fresh | Columns, previous: Snapshot | None
    ) -> BlockEntry:
        if isinstance(found, Columns):
            return writer.write_block(block, found)
        before = None if previous is None else previous.columns(block)
        columns = advance(before, found, smoothing=self.smoothing)
        return writer.write_block(block, columns, num_nan=found.num_nan)

    def _go_on(self, number: int, failed: Exception | None) -> None:
        """Between two blocks: all go on, or all end for the same reason."""
        if agree_on(self.group, failed, place=self.root, stop=self.should_stop()):
            raise Interrupted(
                f"stopped by a signal while {folder_name(number)} was made; the same command goes on from the last "
                "checkpoint and makes it again"
            )

    def _rows_of(self, block: int) -> slice:
        sizes = self.scoring.split.block_sizes
        first = int(sizes[:block].sum())
        return slice(first, first + int(sizes[block]))

    def _labels_of(self, block: int) -> np.ndarray:
        return self.labels[self._rows_of(block)]

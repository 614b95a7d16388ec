"""Opens an epoch: its order, its reading, its signals."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from distill_dist.assemble.curriculum import Curriculum
from distill_dist.curriculum.plan import Plan
from distill_dist.data.loader import StepLoader
from distill_dist.data.window_reader import WindowedSplit
from distill_dist.records import Batch, SignalSpec, Step
from distill_dist.teacher.local import Teacher
from distill_dist.trainer import StepWithSignals


@dataclass(frozen=True)
class Epochs:
    """``open`` is the trainer's ``open_epoch``: a collective of all students."""

    curriculum: Curriculum
    loader: StepLoader
    windowed: WindowedSplit | None  # what the loader reads with `data.window_shards`
    teacher: Teacher | None
    spec: SignalSpec | None  # None: nobody teaches
    prefetch: int
    epochs: int
    last_step: int
    report: Callable[[int], None]  # what the new epoch looks like, at its first step; a collective

    def open(self, done: int) -> Iterator[StepWithSignals]:
        """The steps with their signals from step ``done`` to the end of its epoch, or of the run.

        Nothing of the next epoch is asked for before this one has ended: its order is not known.
        """
        self.curriculum.open_epoch(done)
        self.report(done)
        epoch, step = divmod(done, self.loader.steps_per_epoch)
        if self.windowed is not None:
            assert self.curriculum.now.plan is not None
            self._begin_reading(self.windowed, self.curriculum.now.plan, step)
        end = min(self.last_step, (epoch + 1) * self.loader.steps_per_epoch)
        steps = self.loader.steps(start_step=done, epochs=self.epochs, max_steps=end)
        if self.spec is None:
            return ((step, (None,) * len(step.batches)) for step in steps)
        assert self.teacher is not None
        return self.teacher.signals(steps, _batches_of, self.spec, ahead=self.prefetch)

    def close(self) -> None:
        """End what fetches shards."""
        if self.windowed is not None:
            self.windowed.close()

    def _begin_reading(self, split: WindowedSplit, plan: Plan, step: int) -> None:
        """A length window mixes the rows of all windows of shards that its positions lie in."""
        windows, starts = plan.reading()
        size = self.loader.window * self.loader.batch_size
        edges = np.arange(0, plan.ranked.num_rows, size)
        first = np.searchsorted(starts, edges, side="right") - 1
        last = np.searchsorted(starts, np.append(edges[1:], plan.ranked.num_rows) - 1, side="right") - 1
        split.begin_epoch(
            windows,
            start_window=int(first[step // self.loader.window]),
            reach=max(1, int((last - first).max())),
        )


def _batches_of(step: Step) -> tuple[Batch, ...]:
    return step.batches

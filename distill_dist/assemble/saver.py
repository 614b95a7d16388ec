"""The checkpoints of a run: gathered by all students, written by student 0 beside the training, agreed on by all."""

from __future__ import annotations

import copy
import errno
import functools
import logging
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from distill_dist import checkpoint
from distill_dist.assemble.agreement import UNWRITTEN, agree_written
from distill_dist.background import in_background
from distill_dist.comm.students import StudentGroup
from distill_dist.telemetry import Telemetry

_log = logging.getLogger(__name__)


@dataclass
class Spent:
    """What checkpoints have cost since the process began, on student 0."""

    saved: int = 0
    pause_s: float = 0.0  # training stood still, in all
    longest_pause_s: float = 0.0
    write_s: float = 0.0  # in all, most of it beside the training

    def describe(self) -> dict[str, float]:
        """For summary.json."""
        return {name: round(value, 3) for name, value in vars(self).items()}


@dataclass(frozen=True)
class _Pending:
    """A checkpoint that is being written, or was and has not been spoken of."""

    step: int
    seconds: Future[float]


@dataclass
class Saver:
    """``save`` and ``settle`` are collectives of all students; files are student 0's.

    Everything is copied to host memory before ``save`` returns. The checkpoint counts once its marker stands; that it
    does, or why it never will, all hear in the next ``save`` or ``settle``.
    """

    root: Path
    group: StudentGroup
    telemetry: Telemetry
    keep: checkpoint.Keep
    in_background: bool
    limit_s: float  # longest wait for a checkpoint that is being written
    gather: Callable[[], dict[str, Tensor]]  # weights and moments, copied; a collective
    saved_step: int  # of the newest checkpoint that this run handed over, or goes on from; 0: none
    spent: Spent = field(default_factory=Spent)
    _settled: bool = True  # the same on all
    _pending: _Pending | None = None  # on student 0

    def save(self, step: int, describe: Callable[[], dict[str, Any]]) -> None:
        """Checkpoint after ``step`` finished steps, unless it is there. ``describe``: its progress; a collective.

        Raises Interrupted on a full disk, of this checkpoint's or of the one's before.
        """
        if step == self.saved_step:
            return  # a stop right after an epoch's end
        begin = time.perf_counter()
        self.settle()
        waited_s = time.perf_counter() - begin
        # both copied: what comes next changes what they are copies of
        progress, tensors = copy.deepcopy(describe()), self.gather()
        if self.group.rank == 0:
            self._pending = _Pending(step, self._start(step, progress, tensors))
        self.saved_step, self._settled = step, False
        if not self.in_background:
            self.settle()
        if self.group.rank == 0:
            self._paused(step, time.perf_counter() - begin, waited_s)

    def failed(self) -> bool:
        """Whether a checkpoint could not be written that nobody was told of yet; never waits. Of this student."""
        return (
            self._pending is not None
            and self._pending.seconds.done()
            and self._pending.seconds.exception() is not None
        )

    def settle(self) -> None:
        """Wait until the last checkpoint stands. Raises Interrupted, on all, where it could not be written."""
        if self._settled:
            return
        failed = self._await()
        agree_written(self.group, failed, place=self.root)
        self._settled = True

    def close(self) -> None:
        """Whatever ended the run: wait for what is still being written, and say how that went. No collective."""
        if self._pending is None:
            return
        step = self._pending.step
        failed = self._await()
        if failed is None:
            _log.info("the checkpoint of step %d was still being written, and stands", step)
        else:
            _log.warning("the checkpoint of step %d could not be written: %s", step, failed)

    def _start(self, step: int, progress: dict[str, Any], tensors: dict[str, Tensor]) -> Future[float]:
        write = functools.partial(
            checkpoint.save,
            self.root,
            step=step,
            previous=self.saved_step,
            tensors=tensors,
            progress=progress,
            keep=self.keep,
        )
        return in_background(functools.partial(_seconds_of, write), name="checkpoint")

    def _await(self) -> Exception | None:
        """Why the disk did not take it; None: it stands, or nothing was written here. A bug is raised."""
        if self._pending is None:
            return None
        try:
            failed = self._pending.seconds.exception(self.limit_s)
        except TimeoutError:
            failed = OSError(errno.ETIMEDOUT, f"not done after {self.limit_s:.0f} s")
        pending, self._pending = self._pending, None
        if failed is None:
            self._written(pending.step, pending.seconds.result())
        elif not isinstance(failed, UNWRITTEN):
            raise failed
        return failed

    def _paused(self, step: int, pause_s: float, waited_s: float) -> None:
        self.spent.saved += 1
        self.spent.pause_s += pause_s
        self.spent.longest_pause_s = max(self.spent.longest_pause_s, pause_s)
        self.telemetry.write(step, {"checkpoint/pause_s": pause_s})
        _log.debug(
            "checkpoint of step %d: training stood still for %.3f s, %.3f s of it for the one before",
            step, pause_s, waited_s,
        )  # fmt: skip

    def _written(self, step: int, seconds: float) -> None:
        self.spent.write_s += seconds
        self.telemetry.write(step, {"checkpoint/write_s": seconds})
        _log.debug("checkpoint of step %d: written and read back in %.3f s", step, seconds)


def _seconds_of(work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin

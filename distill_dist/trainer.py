"""The training loop: it receives steps with their signals and knows nothing of where they come from."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from distill_dist.comm.students import StudentGroup
from distill_dist.engine import Engine
from distill_dist.errors import Interrupted, UserError, shared_error
from distill_dist.objectives.conflict import conflict_sums
from distill_dist.objectives.objective import LossTerms
from distill_dist.records import Step, TeacherSignal
from distill_dist.student import StudentStep
from distill_dist.teacher.local import TeacherLost
from distill_dist.telemetry import Telemetry

_log = logging.getLogger(__name__)

# What a student says when a step opens; the largest word of all students counts.
_GO = 0
_UNSAVED = 1  # a checkpoint could not be written
_STOP = 2
_LOST = 3  # no teacher answers
_FAILED = 4  # a row of this student cannot be read, or no teacher has sane signals: no resume mends that

StepWithSignals = tuple[Step, tuple[TeacherSignal | None, ...]]


@dataclass
class Trainer:
    """One student's loop. ``open_epoch``, ``save``, ``end_epoch`` are collectives of the finished steps' number.

    ``open_epoch`` gives the steps with their signals from there to the end of the epoch, or of the run. What ``save``
    was given may still be being written when it returns: ``settle``, a collective too, waits for it, and raises where
    it failed, which ``save_failed`` tells beforehand.
    """

    engine: Engine
    student: StudentStep
    group: StudentGroup
    telemetry: Telemetry
    device: torch.device
    learning_rate: Callable[[int], float]
    why_stop: Callable[[], str | None]
    waited_s: Callable[[], float]
    open_epoch: Callable[[int], Iterator[StepWithSignals]]
    save: Callable[[int], None]
    save_failed: Callable[[], bool]
    settle: Callable[[], None]
    end_epoch: Callable[[int], None]
    spoke: Callable[[int], None]  # after every telemetry point
    committed: tuple[Callable[[Step, list[LossTerms]], None], ...]
    seed: int
    steps_per_epoch: int
    last_step: int
    log_every: int
    checkpoint_every: int

    def run(self, *, start: int) -> None:
        """Train from step ``start`` to ``last_step``. Raises Interrupted after saving when it has to stop early."""
        stream: Iterator[StepWithSignals] = iter(())
        for done in range(start, self.last_step):
            if done == start or done % self.steps_per_epoch == 0:
                stream = self.open_epoch(done)
                self.telemetry.resume_clock(waited_s=self.waited_s())
            step, signals = self._open(stream, done, start)
            assert step.number == done, (step.number, done)
            self._take(step, signals)
            finished = done + 1
            ends_epoch = finished % self.steps_per_epoch == 0 or finished == self.last_step
            if ends_epoch:
                self.end_epoch(finished)
            if ends_epoch or (self.checkpoint_every and finished % self.checkpoint_every == 0):
                self.save(finished)
                self.telemetry.resume_clock(waited_s=self.waited_s())
        self.settle()

    def _open(self, stream: Iterator[StepWithSignals], done: int, start: int) -> StepWithSignals:
        """The next step once every student holds its signals; no collective of the step ever waits for a teacher."""
        word, found = _GO, None
        ended: Exception | None = None
        try:
            found = next(stream)
        except TeacherLost as error:
            word, ended = _LOST, error
        except UserError as error:
            word, ended = _FAILED, error
        why = self.why_stop()
        if why is not None and word != _FAILED:
            word = _STOP  # which cuts the wait for a teacher short
        if word == _GO and self.save_failed():
            word = _UNSAVED
        agreed = self.group.agree(word)
        if agreed == _GO:
            assert found is not None
            return found
        if agreed != _UNSAVED and done > start:
            self.save(done)
        self.settle()
        assert agreed != _UNSAVED, "a checkpoint failed, and nobody was told why"
        if agreed == _STOP:
            # a launcher that sees one rank die signals the others
            gone = "".join(f", {name} is gone" for name in self.group.gone())
            _, reason = self.group.hear(why)
            raise Interrupted(
                f"stopped {reason} after step {done}{gone}; the same command goes on from there"
            )
        speaker, reason = self.group.hear(str(ended) if word == agreed else None)
        if agreed == _LOST:
            raise Interrupted(f"stopped after step {done}: {reason}; the same command goes on from there")
        raise shared_error(reason, said=speaker != self.group.rank)

    def _take(self, step: Step, signals: tuple[TeacherSignal | None, ...]) -> None:
        """One optimizer step."""
        # Dropout is a function of (seed, step, rank): a resumed run draws the same masks.
        torch.manual_seed(hash((self.seed, step.number, self.group.rank)) & 0x7FFF_FFFF_FFFF_FFFF)
        self.engine.module.train()
        micro_batches = []
        for place, (batch, signal) in enumerate(zip(step.batches, signals, strict=True)):
            batch = batch.to(self.device)
            signal = None if signal is None else signal.to(self.device)
            terms = self.student.loss_terms(batch, signal, step.counts)
            self.engine.backward(terms.total(step.counts), last=place == len(step.batches) - 1)
            micro_batches.append(terms)
            self.telemetry.add(
                terms.sums,
                terms.zero_rows,
                real_tokens=(batch.attention_mask_BL * batch.is_real_B[:, None]).sum(),
                computed_tokens=batch.input_ids_BL.numel(),
                measures={**conflict_sums(signal, batch), **terms.of_teachers},
            )
        finished = step.number + 1
        speaks = (
            finished % self.log_every == 0
            or finished % self.steps_per_epoch == 0
            or finished == self.last_step
        )
        if self.checkpoint_every and finished % self.checkpoint_every == 0:
            speaks = True  # a checkpoint never holds a step whose loss nobody looked at
        rate = self.learning_rate(step.number)
        norm = self.engine.step(rate, measure_norm=speaks)
        for listener in self.committed:
            listener(step, micro_batches)
        self.telemetry.step_done(sequences=step.counts.sequences, tokens=step.counts.tokens)
        if speaks:
            self.telemetry.speak(finished, learning_rate=rate, gradient_norm=norm, waited_s=self.waited_s())
            self.spoke(finished)

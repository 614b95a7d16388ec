"""Logs what the student said of each row while it trained on it (`curriculum.score: served`)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from torch import Tensor

from distill_dist.assemble.agreement import alone
from distill_dist.comm.students import StudentGroup
from distill_dist.curriculum.scores import fresh_from_logits
from distill_dist.curriculum.served import ServedLog, cut
from distill_dist.objectives.objective import LossTerms
from distill_dist.records import Batch, Step


class ServedScores:
    """One student's log; a listener of committed steps. ``sync`` and the constructor are collectives."""

    def __init__(
        self, folder: Path, group: StudentGroup, *, measure: str, lengths: dict[str, int], flush_every: int
    ) -> None:
        """Cuts every file of ``folder`` to the records that the checkpoint counts: ``lengths`` by name."""
        self._folder, self._group, self._measure, self._flush_every = folder, group, measure, flush_every
        self._waiting: list[tuple[int, Batch, Tensor]] = []

        def cut_all() -> None:
            # another number of students wrote others
            for name in sorted(lengths.keys() | {path.name for path in folder.glob("rank-*.log")}):
                cut(folder / name, lengths.get(name, 0))

        alone(group, cut_all, place=folder)
        own = folder / _name(group.rank)
        self._lengths = lengths
        self._log = ServedLog(own, length=lengths.get(own.name, 0))

    def __call__(self, step: Step, micro_batches: list[LossTerms]) -> None:
        """Record ``step``. Logits stay on the device until so many steps have gathered: reading them waits for it."""
        for batch, terms in zip(step.batches, micro_batches, strict=True):
            assert terms.logits_BC is not None
            self._waiting.append((step.number, batch, terms.logits_BC))
        if (step.number + 1) % self._flush_every == 0:
            self._flush()

    def sync(self) -> dict[str, int]:
        """Make everything durable; records of every file there ever was, by name: for the checkpoint."""
        self._flush()
        lengths = np.zeros(self._group.size, np.int64)
        lengths[self._group.rank] = self._log.sync()
        summed = self._group.sum_integers(lengths)
        self._lengths = {
            **self._lengths,
            **{_name(rank): int(length) for rank, length in enumerate(summed)},
        }
        return self._lengths

    @property
    def paths(self) -> list[Path]:
        """Every log of the run, whatever number of students wrote them."""
        return sorted(self._folder.glob("rank-*.log"))

    def close(self) -> None:
        """Close the file."""
        self._log.close()

    def _flush(self) -> None:
        for number, batch, logits_BC in self._waiting:
            real = batch.is_real_B.numpy()
            logits, labels = logits_BC.float().cpu().numpy()[real], batch.labels_B.numpy()[real]
            found = fresh_from_logits(self._measure, logits, labels)
            assert batch.positions_B is not None
            self._log.append(
                number,
                positions=batch.positions_B.numpy()[real],
                rows=batch.ids_B.numpy()[real],
                confidence=found.confidence,
                loss=found.loss,
                predicted=found.predicted,
            )
        self._waiting.clear()


def _name(rank: int) -> str:
    return f"rank-{rank:05d}.log"

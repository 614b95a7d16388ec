"""The rows of one rank, step by step: plan -> global batch -> partition -> read -> collate.

No worker processes and no read-ahead: reading and collating cost about 20 µs a row, and the steps are a
function of their number alone, so a resumed run starts the iterator at its cursor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from distill_dist.data.collate import TokenRow, as_filler, collate
from distill_dist.data.partition import partition
from distill_dist.data.windows import EpochPlan, RowsAt, num_steps
from distill_dist.errors import UserError
from distill_dist.records import Batch, BatchCounts, Step

# rows int64 [G] of a global batch -> one number for each, or None while nothing is known of them
OfRows = Callable[[np.ndarray], np.ndarray | None]


class RowSource(Protocol):
    """A prepared split: :class:`distill_dist.data.shards.PreparedSplit`."""

    @property
    def num_rows(self) -> int:
        """Rows of the split."""

    @property
    def lengths(self) -> np.ndarray:
        """Tokens per row, unsigned [rows]."""

    def read(self, rows: np.ndarray) -> Sequence[TokenRow]:
        """The rows with these numbers, in this order."""


@dataclass(frozen=True)
class StepLoader:
    """The training steps of one rank. Holds no state: every iterator of it starts where it is told."""

    split: RowSource
    rows_at: RowsAt  # the plan's order; the curriculum's or curriculum.order.RandomOrder's
    rank: int
    size: int
    seed: int  # of the length windows
    batch_size: int  # rows of a global batch
    window: int  # global batches
    micro_tokens: int
    pad_token_id: int
    pad_to: int = 0
    aligned_share: float = 1.0  # of the rows of every global batch
    reliance_of: OfRows | None = None  # λ float32; None: the objective's own constant
    confidence_of: OfRows | None = None  # the rows of lowest confidence are aligned; None: a draw by the seed

    def __post_init__(self) -> None:
        """Refuses at assembly what would fail at some later step."""
        longest = int(self.split.lengths.max())
        if self.pad_to and longest > self.pad_to:
            raise UserError(
                f"batch.pad_to is {self.pad_to}, but the split has a row of {longest} tokens: "
                f"set batch.pad_to to 0 or to at least {longest}"
            )
        if max(longest, self.pad_to) > self.micro_tokens:
            raise UserError(
                f"batch.micro_tokens is {self.micro_tokens}, but the split has rows of "
                f"{max(longest, self.pad_to)} tokens (padding to batch.pad_to included): "
                f"set batch.micro_tokens to at least {max(longest, self.pad_to)}"
            )

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of an epoch: ceil(rows / batch_size)."""
        return num_steps(self.split.num_rows, self.batch_size)

    def steps(self, *, start_step: int = 0, epochs: int, max_steps: int = 0) -> Iterator[Step]:
        """Steps ``start_step``, ``start_step`` + 1, … to the end of the run, numbered from 0 over all epochs.

        The run ends after ``epochs`` epochs or ``max_steps`` steps in all (0: no limit).
        """
        assert start_step >= 0, start_step
        end = epochs * self.steps_per_epoch
        end = min(end, max_steps) if max_steps else end
        plan: EpochPlan | None = None
        for number in range(start_step, end):
            epoch, index = divmod(number, self.steps_per_epoch)
            if plan is None or plan.epoch != epoch:
                plan = self._plan(epoch)
            rows = plan.global_batch(index)
            lengths = self.split.lengths[rows]
            yield Step(
                epoch=epoch,
                index=index,
                number=number,
                batches=self._micro_batches(rows, lengths, number),
                counts=BatchCounts(sequences=len(rows), tokens=int(lengths.sum(dtype=np.int64))),
            )

    def _plan(self, epoch: int) -> EpochPlan:
        return EpochPlan(
            lengths=self.split.lengths,
            num_rows=self.split.num_rows,
            batch_size=self.batch_size,
            window=self.window,
            rows_at=self.rows_at,
            seed=self.seed,
            epoch=epoch,
        )

    def _micro_batches(self, rows: np.ndarray, lengths: np.ndarray, step: int) -> tuple[Batch, ...]:
        """This rank's share of a global batch; a filler of the shortest row where the share is empty.

        Rows that are aligned and rows that are not come in micro-batches of their own.
        """
        computed = np.maximum(lengths, self.pad_to)
        filling = int(np.argmin(lengths))
        reliance = None if self.reliance_of is None else self.reliance_of(rows)
        found = []
        for chosen, weight in self._groups(rows, step):
            shares = partition(computed[chosen], size=self.size, budget=self.micro_tokens)[self.rank]
            for share in shares:
                if len(share):
                    batch = self._batch(rows, chosen[share], reliance)
                else:
                    batch = as_filler(self._batch(rows, np.array([filling]), reliance))
                found.append(batch if weight == 1.0 else replace(batch, alignment=weight))
        return tuple(found)

    def _batch(self, rows: np.ndarray, positions: np.ndarray, reliance: np.ndarray | None) -> Batch:
        return collate(
            self.split.read(rows[positions]),
            pad_token_id=self.pad_token_id,
            pad_to=self.pad_to,
            reliance_B=None if reliance is None else reliance[positions],
            positions_B=positions,
        )

    def _groups(self, rows: np.ndarray, step: int) -> list[tuple[np.ndarray, float]]:
        """(positions, weight of their aligned terms): exactly the share; where it is drawn, sums are unbiased."""
        aligned = max(1, round(self.aligned_share * len(rows)))
        if aligned == len(rows):
            return [(np.arange(len(rows)), 1.0)]
        # raw words of a bit generator are the same in every version of numpy; its permutations are not
        words = np.random.Philox(key=self.seed, counter=step).random_raw(len(rows))
        confidence = None if self.confidence_of is None else self.confidence_of(rows)
        # lexsort puts NaN last; rows without a score count as the hardest
        hardest = np.zeros(len(rows)) if confidence is None else np.nan_to_num(confidence, nan=-np.inf)
        order = np.lexsort((words, hardest))
        return [(np.sort(order[:aligned]), len(rows) / aligned), (np.sort(order[aligned:]), 0.0)]


def evaluation_batches(
    split: RowSource,
    *,
    rank: int,
    size: int,
    micro_tokens: int,
    pad_token_id: int,
    rows: np.ndarray | None = None,
) -> Iterator[Batch]:
    """This rank's share of ``rows`` (None: of all), each row real on exactly one rank, grouped by length.

    Every rank gets as many batches, because a forward is a collective where weights are sharded.
    """
    rows = np.arange(split.num_rows) if rows is None else rows
    lengths = split.lengths[rows]
    shortest = rows[[np.argmin(lengths)]]
    for share in partition(lengths, size=size, budget=micro_tokens)[rank]:
        if len(share):
            yield collate(split.read(rows[share]), pad_token_id=pad_token_id)
        else:
            yield as_filler(collate(split.read(shortest), pad_token_id=pad_token_id))

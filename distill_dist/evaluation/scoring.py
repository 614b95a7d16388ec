"""One pass of a frozen model over the rows of a split, shard by shard: what the curriculum's scores come from."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from distill_dist.data.loader import evaluation_batches
from distill_dist.data.shards import PreparedSplit
from distill_dist.evaluation.split import SignalSource, add_logits
from distill_dist.records import Batch


@contextlib.contextmanager
def evaluating(module: torch.nn.Module) -> Iterator[None]:
    """Inside the block dropout is off and no random state moves."""
    module.eval()
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        module.train()


@dataclass(frozen=True)
class ScoringPass:
    """Every shard is cut over all students by length, so that a single shard keeps them all busy."""

    split: PreparedSplit
    rank: int
    size: int
    micro_tokens: int
    pad_token_id: int
    num_classes: int
    sum_: Callable[[Tensor], Tensor]  # adds a tensor over all students, in place
    device: torch.device
    ahead: int

    def batches(self, block: int) -> tuple[Batch, ...]:
        """This student's share of shard ``block``, read; UserError for damaged rows."""
        found = evaluation_batches(
            self.split,
            rank=self.rank,
            size=self.size,
            micro_tokens=self.micro_tokens,
            pad_token_id=self.pad_token_id,
            rows=np.arange(*self._bounds(block)),
        )
        return tuple(found)

    def _bounds(self, block: int) -> tuple[int, int]:
        first = int(self.split.block_sizes[:block].sum())
        return first, first + int(self.split.block_sizes[block])

    def logits_NC(self, source: SignalSource, block: int, batches: tuple[Batch, ...]) -> NDArray[np.float32]:
        """Logits of the rows of shard ``block``, in order, on every student; ``batches`` are its own. A collective."""
        first, last = self._bounds(block)
        # disjoint rows: adding zeros changes no bit
        found_NC = torch.zeros(last - first, self.num_classes)
        add_logits(found_NC, source, batches, ahead=self.ahead, first_row=first)
        gathered: NDArray[np.float32] = self.sum_(found_NC.to(self.device)).cpu().numpy()
        return gathered

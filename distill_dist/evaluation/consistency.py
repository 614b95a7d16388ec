"""Does a student behave like its teacher beside the rows it was scored on? (METHOD.md §5)"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from distill_dist.data.collate import TokenRow
from distill_dist.data.loader import RowSource
from distill_dist.data.shards import Example
from distill_dist.evaluation.metrics import closeness
from distill_dist.evaluation.perturb import Perturbation
from distill_dist.evaluation.summed import Floats, Summed, mean_of


@dataclass(frozen=True)
class PerturbedRows:
    """The rows of a split under a perturbation; ``lengths`` are those before it, and none of them grows."""

    rows: RowSource
    perturb: Perturbation

    @property
    def num_rows(self) -> int:
        """Rows of the split."""
        return self.rows.num_rows

    @property
    def lengths(self) -> np.ndarray:
        """Most tokens of every row, unsigned [rows]."""
        return self.rows.lengths

    def read(self, rows: np.ndarray) -> Sequence[TokenRow]:
        """The perturbed rows with these numbers, in this order."""
        found = []
        for row in self.rows.read(rows):
            ids_L, types_L = self.perturb(row.input_ids, row.token_type_ids)
            found.append(Example(row.row, ids_L, types_L, row.label))
        return found


def kept_labels(before_NC: Floats, after_NC: Floats) -> Summed:
    """Share of rows whose predicted class one model keeps under the perturbation."""
    return mean_of(_same(before_NC, after_NC))


def agreement(student_NC: Floats, teacher_NC: Floats) -> dict[str, Summed]:
    """`agreement` and `closeness` on perturbed rows: LL and PL there."""
    return {
        "agreement": mean_of(_same(student_NC, teacher_NC)),
        "closeness": mean_of(closeness(student_NC, teacher_NC)),
    }


def _same(first_NC: Floats, second_NC: Floats) -> Floats:
    return (first_NC.argmax(axis=1) == second_NC.argmax(axis=1)).astype(np.float64)

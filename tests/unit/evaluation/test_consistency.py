from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from distill_dist.data.loader import evaluation_batches
from distill_dist.data.shards import Example
from distill_dist.evaluation.consistency import PerturbedRows, agreement, kept_labels
from distill_dist.evaluation.metrics import loyalty_summed
from distill_dist.evaluation.perturb import Perturbation

LENGTHS = np.array([9, 30, 5, 12, 20, 7])


def read(rows: np.ndarray) -> list[Example]:
    found = []
    for row in rows.tolist():
        ids = np.array([2, *np.random.default_rng(row).integers(5, 99, LENGTHS[row] - 2), 3])
        found.append(Example(row, ids, np.zeros_like(ids), label=row % 3))
    return found


ROWS = SimpleNamespace(num_rows=len(LENGTHS), lengths=LENGTHS, read=read)


@pytest.mark.parametrize("size", [1, 2, 4])
def test_the_same_perturbed_rows_on_any_number_of_ranks(size: int) -> None:
    perturb = Perturbation("delete", 0.3, 0, np.array([2, 3]), np.arange(5, 99))
    rows = PerturbedRows(ROWS, perturb)
    found = {}
    for rank in range(size):
        for batch in evaluation_batches(rows, rank=rank, size=size, micro_tokens=40, pad_token_id=0):
            for place in range(len(batch.ids_B)):
                if batch.is_real_B[place]:
                    mask_L = batch.attention_mask_BL[place].bool()
                    found[int(batch.ids_B[place])] = batch.input_ids_BL[place][mask_L].tolist()
    assert sorted(found) == list(range(len(LENGTHS)))
    for example in read(np.arange(len(LENGTHS))):
        assert found[example.row] == perturb(example.input_ids, example.token_type_ids)[0].tolist()
    assert any(len(found[row]) < LENGTHS[row] for row in found)


def test_known_answers() -> None:
    before = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    after = np.array([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [0.0, 1.0]])
    assert kept_labels(before, after).value == 0.75
    assert kept_labels(before, before).value == 1.0
    found = agreement(before, after)
    assert found["agreement"].value == 0.75
    assert found["closeness"].value == loyalty_summed(before, after)["pl"].value < 1.0

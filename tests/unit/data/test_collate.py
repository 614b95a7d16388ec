"""Padding of rows to one batch."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import pytest
import torch

from distill_dist.data.collate import collate, filler
from distill_dist.records import Batch


@dataclass(frozen=True)
class Row:
    row: int
    input_ids: np.ndarray
    token_type_ids: np.ndarray
    label: int


ROWS = [
    Row(7, np.array([101, 5, 102]), np.array([0, 0, 0]), 2),
    Row(3, np.array([101, 6, 102, 8, 102]), np.array([0, 0, 0, 1, 1]), 0),
]


TENSORS = [field.name for field in fields(Batch) if field.name != "alignment"]


def test_pads_to_the_longest_row() -> None:
    batch = collate(ROWS, pad_token_id=99)
    assert batch.input_ids_BL.tolist() == [[101, 5, 102, 99, 99], [101, 6, 102, 8, 102]]
    assert batch.attention_mask_BL.tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]
    assert batch.token_type_ids_BL.tolist() == [[0, 0, 0, 0, 0], [0, 0, 0, 1, 1]]
    assert batch.ids_B.tolist() == [7, 3]
    assert batch.labels_B.tolist() == [2, 0]
    assert batch.is_real_B.tolist() == [True, True]


def test_pad_to_sets_the_width() -> None:
    short, wide = collate(ROWS, pad_token_id=0), collate(ROWS, pad_token_id=0, pad_to=9)
    assert short.input_ids_BL.shape != wide.input_ids_BL.shape == (2, 9)
    assert torch.equal(wide.input_ids_BL[:, :5], short.input_ids_BL)
    assert wide.attention_mask_BL.sum() == short.attention_mask_BL.sum() == 8


def test_a_row_longer_than_pad_to_is_never_cut() -> None:
    with pytest.raises(AssertionError, match="5 tokens"):
        collate(ROWS, pad_token_id=0, pad_to=4)


def test_filler_is_one_row_that_is_not_real() -> None:
    batch, real = filler(ROWS[1], pad_token_id=0, pad_to=6), collate([ROWS[1]], pad_token_id=0, pad_to=6)
    assert batch.is_real_B.tolist() == [False]
    assert real.is_real_B.tolist() == [True]
    assert batch.alignment == real.alignment == 1.0
    for name in TENSORS:
        if name != "is_real_B":
            assert torch.equal(getattr(batch, name), getattr(real, name))


def test_types() -> None:
    for batch in (collate(ROWS, pad_token_id=0), filler(ROWS[0], pad_token_id=0)):
        for name in TENSORS:
            expected = torch.bool if name == "is_real_B" else torch.int64
            assert getattr(batch, name).dtype == expected

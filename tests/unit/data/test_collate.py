"""Padding of rows to one batch."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import pytest
import torch

from distill_dist.data.collate import as_filler, collate
from distill_dist.records import Batch


@dataclass(frozen=True)
class Row:
    row: int
    input_ids: np.ndarray
    token_type_ids: np.ndarray
    label: int
    teacher_tokens: np.ndarray | None = None


ROWS = [
    Row(7, np.array([101, 5, 102]), np.array([0, 0, 0]), 2),
    Row(3, np.array([101, 6, 102, 8, 102]), np.array([0, 0, 0, 1, 1]), 0),
]


OF_A_RUN = ("reliance_B", "positions_B")
OF_ITS_TEACHER = tuple(field.name for field in fields(Batch) if field.name.startswith("teacher_"))
TENSORS = [
    field.name for field in fields(Batch) if field.name not in ("alignment", *OF_A_RUN, *OF_ITS_TEACHER)
]


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


def test_a_filler_is_the_same_rows_and_not_real() -> None:
    real = collate(ROWS, pad_token_id=0, pad_to=6)
    batch = as_filler(real)
    assert batch.is_real_B.tolist() == [False, False]
    assert real.is_real_B.tolist() == [True, True]
    assert batch.alignment == real.alignment == 1.0
    assert batch.reliance_B is batch.positions_B is None
    for name in TENSORS:
        if name != "is_real_B":
            assert torch.equal(getattr(batch, name), getattr(real, name))


def test_types() -> None:
    for batch in (collate(ROWS, pad_token_id=0), as_filler(collate(ROWS, pad_token_id=0))):
        for name in TENSORS:
            expected = torch.bool if name == "is_real_B" else torch.int64
            assert getattr(batch, name).dtype == expected


def test_what_a_run_says_of_each_row_travels_with_it() -> None:
    """As copies: the arrays may be views of a whole global batch's."""
    reliance, positions = np.array([0.1, 0.7], dtype=np.float32), np.array([5, 2], dtype=np.uint32)
    batch = collate(ROWS, pad_token_id=0, reliance_B=reliance, positions_B=positions)
    assert batch.reliance_B is not None
    assert batch.positions_B is not None
    reliance[:], positions[:] = 0, 0
    assert torch.equal(batch.reliance_B, torch.tensor([0.1, 0.7]))
    assert torch.equal(batch.positions_B, torch.tensor([5, 2]))
    assert (batch.reliance_B.dtype, batch.positions_B.dtype) == (torch.float32, torch.int64)
    bare = collate(ROWS, pad_token_id=0)
    assert bare.reliance_B is bare.positions_B is None


def test_one_value_a_row() -> None:
    with pytest.raises(AssertionError, match=r"\(1,\), 2"):
        collate(ROWS, pad_token_id=0, reliance_B=np.zeros(1, dtype=np.float32))


def test_a_filler_stands_at_place_0_and_relies_as_its_row() -> None:
    reliance, positions = np.array([0.25, 0.5], dtype=np.float32), np.array([5, 2])
    batch = as_filler(collate(ROWS, pad_token_id=0, reliance_B=reliance, positions_B=positions))
    assert torch.equal(batch.reliance_B, torch.tensor([0.25, 0.5]))  # type: ignore[arg-type]
    assert torch.equal(batch.positions_B, torch.tensor([0, 0]))  # type: ignore[arg-type]

"""Token rows -> one padded Batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np
import torch

from distill_dist.records import Batch, Inputs


class TokenRow(Protocol):
    """One prepared row as :mod:`distill_dist.data.shards` reads it."""

    @property
    def row(self) -> int:
        """Row number in the prepared split."""

    @property
    def input_ids(self) -> np.ndarray:
        """int64 [L], special tokens included."""

    @property
    def token_type_ids(self) -> np.ndarray:
        """int64 [L]."""

    @property
    def label(self) -> int:
        """Class number."""

    @property
    def teacher_tokens(self) -> np.ndarray | None:
        """int64 [2, L]: ids and types in the teacher's own vocabulary; None: it reads the same tokens."""


def collate(
    examples: Sequence[TokenRow],
    *,
    pad_token_id: int,
    pad_to: int = 0,
    reliance_B: np.ndarray | None = None,
    positions_B: np.ndarray | None = None,
) -> Batch:
    """The rows as one batch of real rows [B, L]: L is the longest row, or ``pad_to`` tokens if it is set.

    ``reliance_B`` (λ of every row) and ``positions_B`` (its place in the global batch) travel with them, copied. What
    the teacher reads instead, where it has a tokenizer of its own, is padded to its own longest row.
    """
    assert examples, "a batch has at least one row"
    longest = max(len(example.input_ids) for example in examples)
    assert not pad_to or longest <= pad_to, f"a row of {longest} tokens is longer than pad_to {pad_to}"
    rows = [(example.input_ids, example.token_type_ids) for example in examples]
    input_ids_BL, attention_mask_BL, token_type_ids_BL = _pad(rows, pad_to or longest, pad_token_id)
    teacher = _pad_teacher(examples)
    return Batch(
        ids_B=torch.tensor([example.row for example in examples], dtype=torch.int64),
        input_ids_BL=input_ids_BL,
        attention_mask_BL=attention_mask_BL,
        token_type_ids_BL=token_type_ids_BL,
        labels_B=torch.tensor([example.label for example in examples], dtype=torch.int64),
        is_real_B=torch.ones(len(examples), dtype=torch.bool),
        reliance_B=_one_a_row(reliance_B, torch.float32, len(examples)),
        positions_B=_one_a_row(positions_B, torch.int64, len(examples)),
        teacher_input_ids_BL=None if teacher is None else teacher[0],
        teacher_attention_mask_BL=None if teacher is None else teacher[1],
        teacher_token_type_ids_BL=None if teacher is None else teacher[2],
    )


def _pad(rows: Sequence[tuple[np.ndarray, np.ndarray]], width: int, pad_token_id: int) -> Inputs:
    """(ids, mask, types) int64 [B, width] of rows of (ids, types)."""
    shape = (len(rows), width)
    input_ids_BL = np.full(shape, pad_token_id, dtype=np.int64)
    attention_mask_BL = np.zeros(shape, dtype=np.int64)
    token_type_ids_BL = np.zeros(shape, dtype=np.int64)
    for position, (ids, types) in enumerate(rows):
        input_ids_BL[position, : len(ids)] = ids
        attention_mask_BL[position, : len(ids)] = 1
        token_type_ids_BL[position, : len(ids)] = types
    return (
        torch.from_numpy(input_ids_BL),
        torch.from_numpy(attention_mask_BL),
        torch.from_numpy(token_type_ids_BL),
    )


def _pad_teacher(examples: Sequence[TokenRow]) -> Inputs | None:
    """The teacher's own tokens. Padded with 0, as everything that travels to teachers: the mask tells what is real."""
    rows = [(each[0], each[1]) for each in (e.teacher_tokens for e in examples) if each is not None]
    if not rows:
        return None
    assert len(rows) == len(examples), "some rows have tokens for the teacher and some have not"
    return _pad(rows, max(len(ids) for ids, _ in rows), 0)


def as_filler(batch: Batch) -> Batch:
    """The same rows counting for nothing (``is_real_B`` False, place 0): what a rank without a share computes."""
    positions_B = None if batch.positions_B is None else torch.zeros_like(batch.positions_B)
    return replace(batch, is_real_B=torch.zeros_like(batch.is_real_B), positions_B=positions_B)


def _one_a_row(values_B: np.ndarray | None, dtype: torch.dtype, rows: int) -> torch.Tensor | None:
    if values_B is None:
        return None
    assert values_B.shape == (rows,), (values_B.shape, rows)
    return torch.tensor(values_B, dtype=dtype)

"""Rows, models and cases that the ranks of test_engine.py and its float64 reference share. Pure functions."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import BertConfig, BertForSequenceClassification

STEPS, GLOBAL_BATCH, LONGEST, VOCABULARY = 5, 32, 20, 50
# The last global batch has one row, so that one of two ranks computes a filler.
ROWS = (STEPS - 1) * GLOBAL_BATCH + 1
LABELS = ("entailment", "neutral", "contradiction")
TEACHER_LAYERS, STUDENT_LAYERS = (2,), (1,)  # the even map of 4 layers to 2, last unmatched
RATE = 0.05
CUTS = {
    # (pad_to, micro_tokens): what one rank computes at once
    "whole": (LONGEST, GLOBAL_BATCH * LONGEST),  # 1 x 32 on one rank
    "6 rows": (LONGEST, 6 * LONGEST),  # 3 micro-batches on each of two ranks
    "4 rows": (LONGEST, 4 * LONGEST),  # 8 x 4 on one rank
    "ragged": (0, 96),  # a number of micro-batches that varies by step
}


@dataclass(frozen=True)
class Row:
    """One sample, as data.loader reads it."""

    row: int
    input_ids: np.ndarray
    token_type_ids: np.ndarray
    label: int
    teacher_tokens: np.ndarray | None = None


@dataclass(frozen=True)
class Rows:
    """A split in memory: steps become longer from batch to batch, rows are ragged inside them."""

    rows: tuple[Row, ...]

    @property
    def num_rows(self) -> int:
        """Rows of the split."""
        return len(self.rows)

    @property
    def lengths(self) -> np.ndarray:
        """Tokens per row."""
        return np.array([len(row.input_ids) for row in self.rows])

    def read(self, rows: np.ndarray) -> list[Row]:
        """The rows with these numbers."""
        return [self.rows[row] for row in rows]


@dataclass(frozen=True)
class Case:
    """One comparison: a method, how its batches are cut, and what differs from the defaults."""

    method: str
    cut: str = "ragged"
    frozen: bool = False
    clip_norm: float = 0.0
    weight_decay: float = 0.0

    @property
    def name(self) -> str:
        """For messages and file names."""
        parts = [self.method, self.cut, "frozen" if self.frozen else "trained"]
        return "-".join([*parts, f"clip{self.clip_norm}", f"decay{self.weight_decay}"]).replace(" ", "_")


CASES = (
    Case("kd"),
    Case("kd", cut="4 rows"),
    Case("pkd"),
    Case("gkd", frozen=True),
    Case("gkd_cls"),
    Case("gkd_cls", cut="whole"),
    Case("gkd_cls", cut="4 rows"),
    Case("gkd_cls", frozen=True, clip_norm=0.5, weight_decay=0.01),
)


def make_rows() -> Rows:
    """Random rows: classifier token, words, separator; the second half is the second segment."""
    random = np.random.default_rng(0)
    rows = []
    for number in range(ROWS):
        length = int(random.integers(4, min(LONGEST, 8 + 4 * (number // GLOBAL_BATCH)) + 1))
        ids = random.integers(5, VOCABULARY, size=length)
        ids[0], ids[-1] = 2, 3
        segments = (np.arange(length) > length // 2).astype(np.int64)
        rows.append(Row(number, ids, segments, int(random.integers(len(LABELS)))))
    return Rows(tuple(rows))


def make_models(folder: Path) -> None:
    """`teacher` and `student` below ``folder``: random, but sharp enough for gradients of some size."""
    torch.manual_seed(0)
    for name, layers in (("teacher", 4), ("student", 2)):
        config = BertConfig(
            vocab_size=VOCABULARY,
            hidden_size=32,
            num_hidden_layers=layers,
            num_attention_heads=4,
            intermediate_size=64,
            max_position_embeddings=LONGEST,
            initializer_range=0.2,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            id2label=dict(enumerate(LABELS)),
            label2id={label: number for number, label in enumerate(LABELS)},
            pad_token_id=0,
        )
        BertForSequenceClassification(config).save_pretrained(folder / name)

"""The floor that a distilled student must beat: a linear classifier that sees words, not their order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from scipy import sparse
from sklearn.linear_model import LogisticRegression


class TokenRow(Protocol):
    """A prepared row: token ids and segment numbers [L], class number."""

    @property
    def input_ids(self) -> np.ndarray: ...
    @property
    def token_type_ids(self) -> np.ndarray: ...
    @property
    def label(self) -> int: ...


def bag_of_words_accuracy(train: Sequence[TokenRow], dev: Sequence[TokenRow]) -> float:
    """Accuracy on ``dev``, 0 to 1, of a logistic regression fitted on ``train``.

    Features per token: its count in either segment, and for pairs also the counts that only the first or only
    the second segment has, and those that both have: what a linear model can use of the overlap. Rows of one
    segment reduce to plain counts.
    """
    vocab_size = 1 + max(int(row.input_ids.max()) for row in train)
    model = LogisticRegression(C=1.0, max_iter=200, tol=1e-4)
    model.fit(_features(train, vocab_size), _labels(train))
    return float((model.predict(_features(dev, vocab_size)) == _labels(dev)).mean())


def _labels(rows: Sequence[TokenRow]) -> np.ndarray:
    return np.array([row.label for row in rows], dtype=np.int64)


def _counts(rows: Sequence[TokenRow], segment: int, vocab_size: int) -> sparse.csr_matrix:
    """Counts [rows, vocab_size] of the tokens of one segment; tokens that train never had are left out."""
    tokens = [row.input_ids[row.token_type_ids == segment] for row in rows]
    columns = np.concatenate(tokens) if tokens else np.zeros(0, dtype=np.int64)
    numbers = np.repeat(np.arange(len(rows)), [len(ids) for ids in tokens])
    known = columns < vocab_size
    ones = np.ones(int(known.sum()), dtype=np.float64)
    return sparse.csr_matrix((ones, (numbers[known], columns[known])), shape=(len(rows), vocab_size))


def _features(rows: Sequence[TokenRow], vocab_size: int) -> sparse.csr_matrix:
    """Features [rows, 5 * vocab_size], sparse."""
    first, second = (_counts(rows, segment, vocab_size) for segment in (0, 1))
    both = first.minimum(second)
    return sparse.hstack([first, second, first - both, second - both, both], format="csr")

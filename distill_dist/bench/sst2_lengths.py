"""Batches as long as SST-2's, on machines that do not have its rows."""

from __future__ import annotations

import numpy as np

from distill_dist.data.windows import window_batches

# Rows of SST-2's train split (67,349; mean 13.3, median 10) with 3, 4, 5 … tokens in bert-base-uncased's vocabulary,
# [CLS] and [SEP] included. Counted over the official train.tsv.
SHORTEST = 3
ROWS_OF_LENGTH = (
    1978, 5322, 6065, 5345, 4749, 4155, 3713, 3267, 2947, 2650, 2413, 2138, 1950, 1777, 1661, 1515,
    1373, 1285, 1132, 1106, 1046, 909, 820, 806, 733, 692, 628, 538, 491, 442, 448, 400,
    337, 304, 286, 242, 195, 203, 192, 155, 148, 130, 89, 82, 85, 73, 55, 42,
    50, 40, 36, 19, 21, 22, 15, 8, 6, 3, 2, 5, 5, 1, 2, 2,
)  # fmt: skip
WINDOW = 64  # global batches that the loader sorts by length (batch.length_window)


def batch_lengths(count: int, *, rows: int, seed: int) -> list[np.ndarray]:
    """Lengths (int64 [rows]) of ``count`` batches of ``rows`` rows, shortest batch first.

    One window of the loader, lengths drawn at random, of which the batches stand for equal parts: the average over
    few of them is the average over many.
    """
    shares = np.array(ROWS_OF_LENGTH) / sum(ROWS_OF_LENGTH)
    lengths_N = SHORTEST + np.random.default_rng(seed).choice(len(shares), size=WINDOW * rows, p=shares)
    batches = window_batches(
        np.arange(len(lengths_N)), lengths_N, batch_size=rows, seed=seed, epoch=0, index=0
    )
    by_length = sorted((lengths_N[batch] for batch in batches), key=lambda lengths_B: int(lengths_B.sum()))
    return [by_length[(2 * place + 1) * WINDOW // (2 * count)] for place in range(count)]

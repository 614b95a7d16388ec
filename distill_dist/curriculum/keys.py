"""Confidence -> an integer key that ascends from the row trained first, and a seeded hash of the row for ties."""

from __future__ import annotations

from typing import Literal

import numpy as np

from distill_dist.curriculum.hashing import GOLDEN, MASK, mix, mix_integer

Direction = Literal["easy_to_hard", "hard_to_easy"]
Unscored = Literal["hardest", "easiest"]

# No key reaches it, so a threshold there lies above every row.
ABOVE_ALL = 0xFFFFFFFF
FIRST, LAST = 0, 0xFFFFFFFE  # keys of rows without a score: before, or behind, every number

_CENTRE = np.uint32(0x80000000)  # key of 0.0
_INFINITY = 0x7F800000  # bits of +inf; above it are NaNs


def score_keys(
    confidence: np.ndarray,
    *,
    direction: Direction,
    unscored: Unscored,
) -> np.ndarray:
    """Keys (uint32 [n]) of ``confidence`` (float32 [n]), ascending = trained first; below ``ABOVE_ALL``.

    Exactly the order of the floats: −0.0 and 0.0 are one key, infinities are legal. NaNs are all one key, at the
    end that ``unscored`` names. Bits only: denormals count, whatever the floating-point mode of the thread.
    """
    assert confidence.dtype == np.float32, confidence.dtype
    assert direction in ("easy_to_hard", "hard_to_easy"), direction
    assert unscored in ("hardest", "easiest"), unscored
    bits = np.ascontiguousarray(confidence).view(np.int32)
    low, high = int(bits.min(initial=0)), int(bits.max(initial=0))
    ascending = bits
    if low < 0:  # probabilities never come here
        sign = bits >> 31  # 0 or −1
        ascending = (bits ^ (sign & np.int32(0x7FFFFFFF))) - sign  # sign and magnitude -> two's complement
    from_centre = ascending.view(np.uint32)
    keys = _CENTRE - from_centre if direction == "easy_to_hard" else _CENTRE + from_centre
    if high > _INFINITY or low < 0:
        last = (direction == "easy_to_hard") == (unscored == "hardest")
        keys[(bits & np.int32(0x7FFFFFFF)) > _INFINITY] = LAST if last else FIRST
    return keys


def row_hashes(rows: np.ndarray, seed: int) -> np.ndarray:
    """Hashes (uint64 [n]) of ``rows`` (integers [n]): a bijection of 64 bits, so that no two rows tie.

    The row-th output of a splitmix64 that is seeded with the first output of a splitmix64 of ``seed``.
    """
    hashes = rows.astype(np.uint64)
    hashes *= np.uint64(GOLDEN)
    hashes += np.uint64((mix_integer(seed + GOLDEN) + GOLDEN) & MASK)
    return mix(hashes)

"""splitmix64's finaliser (Stafford's variant 13): a bijection of 64 bits that spreads every bit of its input."""

from __future__ import annotations

import numpy as np

MASK = (1 << 64) - 1
GOLDEN = 0x9E3779B97F4A7C15
_MULTIPLIERS = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)


def mix(values: np.ndarray) -> np.ndarray:
    """``values`` (uint64, changed in place and returned), each mixed; arithmetic modulo 2**64."""
    shifted = np.empty_like(values)
    for shift, multiplier in zip((30, 27), _MULTIPLIERS, strict=True):
        np.right_shift(values, np.uint64(shift), out=shifted)
        values ^= shifted
        values *= np.uint64(multiplier)
    np.right_shift(values, np.uint64(31), out=shifted)
    values ^= shifted
    return values


def mix_integer(value: int) -> int:
    """:func:`mix` of one Python integer: numpy scalars would warn of the overflow that is meant here."""
    value &= MASK
    value = ((value ^ (value >> 30)) * _MULTIPLIERS[0]) & MASK
    value = ((value ^ (value >> 27)) * _MULTIPLIERS[1]) & MASK
    return value ^ (value >> 31)

"""Which rows of several questions a teacher computes together: pure integers."""

from __future__ import annotations

from collections.abc import Sequence


def micro_batches(lengths: Sequence[int], *, budget: int) -> list[list[int]]:
    """Rows by micro-batch, the longest first; rows × longest is at most ``budget`` tokens, or it is one row.

    Rows of like length share a micro-batch, so little of it is padding.
    """
    descending = sorted(range(len(lengths)), key=lambda row: (-lengths[row], row))
    found = []
    while descending:
        count = max(1, budget // max(1, lengths[descending[0]]))
        found.append(descending[:count])
        descending = descending[count:]
    return found

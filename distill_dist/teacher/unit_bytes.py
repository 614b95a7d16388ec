"""Unit rows (directions) as bytes, in fewer bits where that is asked for."""

from __future__ import annotations

import sys

import torch
from torch import Tensor

from distill_dist.objectives.alignment import unit_rows

_FLOATS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
WIRE_TYPES = (*_FLOATS, "int8")
_INT8_PEAK = 127
# Tensors are viewed as bytes in the machine's own order.
assert sys.byteorder == "little", "the bytes of signals are little-endian"


def bytes_per_number(wire_type: str) -> int:
    """What one number of a unit row takes."""
    return 1 if wire_type == "int8" else _FLOATS[wire_type].itemsize


def unit_rows_to_bytes(rows: Tensor, wire_type: str) -> Tensor:
    """Unit ``rows`` fp32 [..., H] as uint8 [..., H · bytes_per_number], little-endian.

    int8 is H integers that reach ±127 in every row: the row's scale needs no place, since it cancels where
    the norm is made 1 again. Raises ValueError for a row that is not finite, which integers could not tell.
    """
    if wire_type == "int8":
        peaks = rows.abs().amax(dim=-1, keepdim=True)
        if not peaks.isfinite().all():
            raise ValueError("the teacher's signal is not finite: int8 cannot carry it")
        # 0 / 0 would be NaN, whose integer is anything.
        scales = torch.where(peaks == 0, 1.0, peaks / _INT8_PEAK)
        return (rows / scales).round().to(torch.int8).view(torch.uint8)
    return rows.to(_FLOATS[wire_type]).contiguous().view(torch.uint8)


def unit_rows_from_bytes(values: Tensor, wire_type: str) -> Tensor:
    """The inverse: fp32 [..., H] of contiguous uint8 ``values``; fp32 to the bit, others with norm 1 again.

    The squares of int8 sum without rounding up to H = 1040 (127² · H < 2²⁴).
    """
    if wire_type == "fp32":
        return values.view(torch.float32)
    numbers = values.view(torch.int8 if wire_type == "int8" else _FLOATS[wire_type])
    return unit_rows(numbers)[0]

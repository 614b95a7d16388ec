"""What is computed of rows that stand twice in the data."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any, cast

import torch

from distill_dist.assemble.fill_cache import _fill
from distill_dist.records import Batch, SignalSpec
from distill_dist.teacher.row_codec import WireTypes
from distill_dist.teacher.row_computer import RowComputer
from distill_dist.teacher.signal_cache import SignalCache
from distill_dist.teacher.wire import Request


class Computer:
    fingerprint, types = "f" * 64, WireTypes()

    def __call__(self, request: Request, spec: SignalSpec) -> list[bytes]:
        return [bytes(ids.tolist()) for ids in request.input_ids_BL]


def test_rows_that_stand_twice_are_written_once_and_nothing_is_missing(tmp_path: Path) -> None:
    ids_BL = torch.tensor([[1, 2], [3, 4], [1, 2]])
    batch = cast(Any, Batch)(
        **{
            **dict.fromkeys(Batch.__dataclass_fields__),
            "input_ids_BL": ids_BL,
            "attention_mask_BL": torch.ones_like(ids_BL),
            "token_type_ids_BL": torch.zeros_like(ids_BL),
        }
    )
    with contextlib.closing(SignalCache(0, tmp_path, context=bytes(32))) as cache:
        rows, cached = _fill(cache, cast(RowComputer, Computer()), batch, SignalSpec())
        assert cache.counters()["written"] == rows - cached == 2
        assert _fill(cache, cast(RowComputer, Computer()), batch, SignalSpec()) == (3, 3)

"""What a sample's signal takes per wire type, and how far a decoded direction is off."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from distill_dist.bench.distillation_cases import Case
from distill_dist.records import SignalSpec
from distill_dist.teacher.row_codec import RowCodec, WireTypes, cosine_errors
from distill_dist.teacher.unit_bytes import WIRE_TYPES


def measure_wire(cases: Sequence[Case], spec: SignalSpec) -> dict[str, dict[str, Any]]:
    """Per wire type: bytes per sample, fp32's over that, and the mean cosine of all unit rows; also per field.

    ``cosine`` is over the rows of all fields together, ``least_cosine`` the worst row's.
    """
    signal = cases[0].signal
    gradients = signal.embedding_gradient_BLVH
    assert gradients is not None, "the benchmark's method aligns them"
    width = gradients.shape[-1]
    found: dict[str, dict[str, Any]] = {}
    for name in WIRE_TYPES:
        codec = RowCodec(spec, signal.logits_BC.shape[1], width, width, WireTypes(name, name, name))
        num_bytes = num_rows = 0
        errors: dict[str, list[torch.Tensor]] = {}
        for case in cases:
            rows = codec.encode(case.signal, case.batch.attention_mask_BL.sum(dim=1))
            num_bytes, num_rows = num_bytes + sum(map(len, rows)), num_rows + len(rows)
            decoded = codec.decode(rows, length=case.batch.input_ids_BL.shape[1])
            for field, error in cosine_errors(case.signal, decoded).items():
                errors.setdefault(field, []).append(error)
        joined = {field: torch.cat(parts) for field, parts in errors.items()}
        every = torch.cat(list(joined.values()))
        found[name] = {
            "bytes_per_sample": num_bytes / num_rows,
            "cosine": 1.0 - float(every.mean()),
            "least_cosine": 1.0 - float(every.max()),
            "cosine_error": {field: float(error.mean()) for field, error in joined.items()},
        }
    for figures in found.values():
        figures["bytes_ratio"] = found["fp32"]["bytes_per_sample"] / figures["bytes_per_sample"]
    return found

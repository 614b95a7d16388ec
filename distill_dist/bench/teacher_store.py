"""Batches with their encoded signals in a folder: what stand-ins for workers replay and clients check against."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from distill_dist.bench.distillation_cases import Case
from distill_dist.records import Batch, SignalSpec, TeacherSignal
from distill_dist.teacher.row_codec import RowCodec, WireTypes
from distill_dist.teacher.sanity import Probe
from distill_dist.teacher.wire import Answer, pack_rows

_TENSORS, _ABOUT, _PACE = "cases.safetensors", "about.json", "pace.f64"
_OF_BATCH = ("ids_B", "input_ids_BL", "attention_mask_BL", "token_type_ids_BL", "labels_B", "is_real_B")
# Token types of the real tokens that every row has (SST-2's shortest: 3) count variants, a byte each.
VARIANT_TOKENS = 3


@dataclass(frozen=True)
class StoredCases:
    """Batches, the encoded rows of each, and what a student must decode from them.

    ``costs``: a batch's share of a mean student step, so that a stand-in takes longer for longer rows, as the step
    does. ``description``: what hosts say of who teaches.
    """

    batches: list[Batch]
    rows: list[list[bytes]]
    spec: SignalSpec
    costs: list[float]
    description: dict[str, Any]

    def codec(self) -> RowCodec:
        """Of the rows."""
        about = self.description
        sizes = (about["classes"], about["hidden_size"], about["embedding_size"])
        return RowCodec(self.spec, *sizes, WireTypes(**about["wire"]))

    def signals(self) -> list[TeacherSignal]:
        """Every batch's, decoded."""
        codec = self.codec()
        return [
            codec.decode(rows, length=batch.input_ids_BL.shape[1])
            for batch, rows in zip(self.batches, self.rows, strict=True)
        ]

    def save(self, folder: Path) -> None:
        """Write it for :func:`load_cases`."""
        tensors: dict[str, torch.Tensor] = {}
        for number, (batch, rows) in enumerate(zip(self.batches, self.rows, strict=True)):
            answer = pack_rows(rows)
            tensors |= {f"{number}.{name}": getattr(batch, name).contiguous() for name in _OF_BATCH}
            tensors |= {f"{number}.content": answer.content_X, f"{number}.sizes": answer.sizes_B}
        save_file(tensors, folder / _TENSORS)
        about = {"spec": asdict(self.spec), "costs": self.costs, "description": self.description}
        (folder / _ABOUT).write_text(json.dumps(about), encoding="utf-8")


def load_cases(folder: Path) -> StoredCases:
    """The inverse of :meth:`StoredCases.save`."""
    tensors: dict[str, Any] = load_file(folder / _TENSORS)
    about = json.loads((folder / _ABOUT).read_text(encoding="utf-8"))
    assert about["spec"]["noise"] is None, "the benchmark's method asks for none"
    numbers = range(len(about["costs"]))
    return StoredCases(
        batches=[Batch(*(tensors[f"{number}.{name}"] for name in _OF_BATCH)) for number in numbers],
        rows=[
            [bytes(row) for row in Answer(tensors[f"{number}.content"], tensors[f"{number}.sizes"]).rows()]
            for number in numbers
        ],
        spec=SignalSpec(**{**about["spec"], "layers": tuple(about["spec"]["layers"])}),
        costs=about["costs"],
        description=about["description"],
    )


def encode_cases(
    cases: Sequence[Case], spec: SignalSpec, *, step_s: Sequence[float], types: WireTypes
) -> StoredCases:
    """``cases`` for a stand-in, encoded as a worker does it; ``step_s``: what a student takes for each."""
    assert all(int(case.batch.attention_mask_BL.sum(dim=1).min()) >= VARIANT_TOKENS for case in cases)
    signal = cases[0].signal
    gradients = signal.embedding_gradient_BLVH
    assert gradients is not None, "the benchmark's method aligns them"
    width = gradients.shape[-1]
    description: dict[str, Any] = {
        "parameters": 0,
        "fingerprint": "0" * 64,
        "classes": signal.logits_BC.shape[1],
        "hidden_size": width,
        "embedding_size": width,
        "wire": asdict(types),
        "probe": asdict(_probe(signal)),
        "wire_report": {},
        "row_difference": 0.0,
    }
    codec = RowCodec(spec, description["classes"], width, width, types)
    # Short rows stand in several batches: the service gives them one signal.
    known: dict[bytes, bytes] = {}
    for case in cases:
        rows = codec.encode(case.signal, case.batch.attention_mask_BL.sum(dim=1))
        known = dict(zip(contents(case.batch), rows, strict=True)) | known
    mean_s = sum(step_s) / len(step_s)
    return StoredCases(
        batches=[case.batch for case in cases],
        rows=[[known[content] for content in contents(case.batch)] for case in cases],
        spec=spec,
        costs=[seconds / mean_s for seconds in step_s],
        description=description,
    )


def _probe(signal: TeacherSignal) -> Probe:
    """What the teacher said of the first batch: a stand-in that says it again is what it was."""
    norm_BLV = signal.embedding_gradient_norm_BLV
    assert norm_BLV is not None, "the benchmark's method aligns embedding gradients"
    return Probe(logits=signal.logits_BC.tolist(), saliency=norm_BLV[..., 0].tolist())


def contents(batch: Batch) -> list[bytes]:
    """The token ids of every row as bytes: what a stand-in knows it by."""
    ids_BL = batch.input_ids_BL.int().numpy()
    lengths: list[int] = batch.attention_mask_BL.sum(dim=1).tolist()
    return [ids_BL[row, :length].tobytes() for row, length in enumerate(lengths)]


def as_variant(batch: Batch, variant: int) -> Batch:
    """The same rows under keys of their own, which no cache has: ``variant`` (below 2²⁴) as token types.

    A stand-in looks at token ids alone, so it knows them all the same.
    """
    digits = [variant >> (8 * place) & 255 for place in range(VARIANT_TOKENS)]
    types_BL = batch.token_type_ids_BL.clone()
    types_BL[:, :VARIANT_TOKENS] = torch.tensor(digits)
    return replace(batch, token_type_ids_BL=types_BL)


class Pace:
    """How long a stand-in takes for a mean batch, in seconds; it reads that anew for every question."""

    def __init__(self, folder: Path, seconds: float | None = None) -> None:
        """The pace in ``folder``, made there where ``seconds`` are given."""
        mode = "r+" if seconds is None else "w+"
        self._value = np.memmap(folder / _PACE, np.float64, mode=mode, shape=(1,))  # type: ignore[call-overload]
        if seconds is not None:
            self.seconds = seconds

    @property
    def seconds(self) -> float:
        """Of a mean batch."""
        return float(self._value[0])

    @seconds.setter
    def seconds(self, value: float) -> None:
        self._value[0] = value

"""One sample's signal as one bytes object: the unit of the cache and of the wire.

A row is a header, the fields of the sequence, then the fields of every real token. It depends on its sample
alone: neither neighbours nor padding change it, and two encodings of one row are equal.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from math import prod

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from distill_dist.objectives.signal import num_all_classes_views
from distill_dist.records import SignalSpec, TeacherSignal
from distill_dist.teacher.unit_bytes import (
    WIRE_TYPES,
    bytes_per_number,
    unit_rows_from_bytes,
    unit_rows_to_bytes,
)

# Raise it with any change of the layout: bytes of another version are refused.
ROW_VERSION = 1
# Version, digest of the layout, real tokens.
_HEADER = struct.Struct("<B7sI")


@dataclass(frozen=True)
class WireTypes:
    """How the unit rows of a signal travel: a name of WIRE_TYPES for every kind. Everything else is fp32."""

    states: str = "fp32"
    cls_gradients: str = "fp32"
    embedding_gradients: str = "fp32"

    def __post_init__(self) -> None:
        """Raises ValueError for a name that is none of WIRE_TYPES."""
        for field in fields(self):
            value = getattr(self, field.name)
            if value not in WIRE_TYPES:
                raise ValueError(f"{field.name}={value!r} is none of {', '.join(WIRE_TYPES)}")


@dataclass(frozen=True)
class _Part:
    """One field of TeacherSignal: its shape behind the row or token, and how its numbers travel."""

    name: str
    shape: tuple[int, ...]
    wire_type: str = "fp32"

    @property
    def num_bytes(self) -> int:
        return prod(self.shape) * bytes_per_number(self.wire_type)

    def to_bytes(self, values: Tensor) -> Tensor:
        """fp32 [..., *shape] -> uint8 [..., num_bytes]."""
        assert values.dtype == torch.float32, (self.name, values.dtype)
        found = unit_rows_to_bytes(values, self.wire_type)
        return found.flatten(start_dim=values.ndim - len(self.shape))

    def from_bytes(self, values: Tensor) -> Tensor:
        """uint8 [..., num_bytes], a slice of something wider -> fp32 [..., *shape]."""
        # A clone, because a view as wider numbers needs an aligned start.
        values = values.clone(memory_format=torch.contiguous_format)
        return unit_rows_from_bytes(values.unflatten(-1, (*self.shape[:-1], -1)), self.wire_type)


@dataclass(frozen=True)
class RowCodec:
    """Signals of one ``spec`` to rows and back, for a teacher of these widths and so many classes."""

    spec: SignalSpec
    num_classes: int
    hidden_size: int
    embedding_size: int
    types: WireTypes = WireTypes()

    def encode(self, signal: TeacherSignal, lengths_B: Tensor) -> list[bytes]:
        """One bytes object a row, of its ``lengths_B`` first tokens; ``signal`` is fp32 on any device.

        Raises ValueError where int8 should carry numbers that are not finite.
        """
        lengths: list[int] = lengths_B.tolist()
        of_tokens = [getattr(signal, part.name) for part in self._token_parts]
        positions = of_tokens[0].shape[1] if of_tokens else max(lengths, default=0)
        assert max(lengths, default=0) <= positions, (lengths, positions)
        row_bytes = self._matrix(signal, self._row_parts, (len(lengths),))
        token_bytes = self._matrix(signal, self._token_parts, (len(lengths), positions))
        headers = [_HEADER.pack(ROW_VERSION, self._digest, length) for length in lengths]
        return [
            b"".join((header, of_row, of_token[:length]))
            for header, of_row, of_token, length in zip(headers, row_bytes, token_bytes, lengths, strict=True)
        ]

    def decode(self, rows: Sequence[bytes | memoryview], *, length: int | None = None) -> TeacherSignal:
        """The signal of ``rows`` on the CPU, with zeros up to ``length`` tokens, or up to the longest row's.

        Raises ValueError for bytes that another codec or version wrote, for rows of the wrong size, and for
        rows longer than ``length``.
        """
        lengths = [self._num_tokens(row, place) for place, row in enumerate(rows)]
        longest = max(lengths, default=0)
        if length is not None and length < longest:
            raise ValueError(f"a row has {longest} tokens, expected at most {length}")
        row_size, token_size = _size(self._row_parts), _size(self._token_parts)
        row_bytes = np.empty((len(rows), row_size), np.uint8)
        # Zero bytes are zero in every type, so padding needs no care.
        token_bytes = np.zeros((len(rows), longest if length is None else length, token_size), np.uint8)
        for place, (row, tokens) in enumerate(zip(rows, lengths, strict=True)):
            content = np.frombuffer(row, np.uint8, offset=_HEADER.size)
            row_bytes[place] = content[:row_size]
            token_bytes[place, :tokens] = content[row_size:].reshape(tokens, token_size)
        return TeacherSignal(
            **_fields_from(row_bytes, self._row_parts), **_fields_from(token_bytes, self._token_parts)
        )

    def row_bytes(self, tokens: int) -> int:
        """Size of a row of so many real tokens, in bytes."""
        return _HEADER.size + _size(self._row_parts) + tokens * _size(self._token_parts)

    def mean_row_bytes(self, mean_tokens: float) -> float:
        """Mean size of rows of so many real tokens on average, in bytes."""
        return self.row_bytes(0) + mean_tokens * _size(self._token_parts)

    @property
    def unit_kinds(self) -> tuple[str, ...]:
        """Unit rows that a row has, by the names of SignalSpec."""
        kinds = ("cls_states", "cls_gradients", "embedding_gradient")
        return tuple(kind for kind in kinds if getattr(self.spec, kind))

    @cached_property
    def _row_parts(self) -> tuple[_Part, ...]:
        spec, layers = self.spec, len(self.spec.layers)
        parts = [_Part("logits_BC", (self.num_classes,))]
        if spec.cls_states:
            parts.append(_Part("cls_states_BKH", (layers, self.hidden_size), self.types.states))
            parts.append(_Part("cls_state_norm_BK", (layers,)))
        if spec.cls_gradients:
            shape = (layers, self._views, self.hidden_size)
            parts.append(_Part("cls_gradients_BKVH", shape, self.types.cls_gradients))
            parts.append(_Part("cls_gradient_norm_BKV", shape[:-1]))
        if spec.noise is not None:
            parts.append(_Part("noisy_logits_BDC", (spec.noise.draws, self.num_classes)))
        return tuple(parts)

    @cached_property
    def _token_parts(self) -> tuple[_Part, ...]:
        parts = []
        if self.spec.embedding_gradient:
            shape = (self._views, self.embedding_size)
            parts.append(_Part("embedding_gradient_BLVH", shape, self.types.embedding_gradients))
            parts.append(_Part("embedding_gradient_norm_BLV", shape[:-1]))
        if self.spec.attribution_top_k is not None:
            parts.append(_Part("attribution_BLC", (num_all_classes_views(self.num_classes),)))
        return tuple(parts)

    @property
    def _views(self) -> int:
        return num_all_classes_views(self.num_classes) if self.spec.signal == "all_classes" else 1

    @cached_property
    def _digest(self) -> bytes:
        """Of all that this codec was made from: specs of the same sizes mean different numbers."""
        content = json.dumps(asdict(self), sort_keys=True)
        return hashlib.blake2b(content.encode(), digest_size=7).digest()

    def _matrix(
        self, signal: TeacherSignal, parts: tuple[_Part, ...], leading: tuple[int, ...]
    ) -> np.ndarray:
        """The bytes of ``parts`` side by side: uint8 [*leading, bytes]."""
        if not parts:
            return np.empty((*leading, 0), np.uint8)
        found = []
        for part in parts:
            values = getattr(signal, part.name)
            assert values is not None, part.name
            assert values.shape == (*leading, *part.shape), (part.name, values.shape, leading, part.shape)
            found.append(part.to_bytes(values))
        return torch.cat(found, dim=-1).cpu().numpy()

    def _num_tokens(self, row: bytes | memoryview, place: int) -> int:
        """The row's own count of tokens; raises ValueError for a row that this codec did not write."""
        size = memoryview(row).nbytes
        if size < _HEADER.size:
            raise ValueError(f"row {place} has {size} bytes, expected {self.row_bytes(0)} or more")
        version, digest, tokens = _HEADER.unpack_from(row)
        if version != ROW_VERSION:
            raise ValueError(f"row {place} has version {version}, expected {ROW_VERSION}")
        if digest != self._digest:
            raise ValueError(
                f"row {place} has the layout {digest.hex()}, expected {self._digest.hex()}: it was written "
                "for another spec, teacher or wire types"
            )
        if size != self.row_bytes(tokens):
            raise ValueError(
                f"row {place} has {size} bytes, expected {self.row_bytes(tokens)} for its {tokens} tokens"
            )
        return int(tokens)


def _size(parts: tuple[_Part, ...]) -> int:
    return sum(part.num_bytes for part in parts)


def _fields_from(matrix: np.ndarray, parts: tuple[_Part, ...]) -> dict[str, Tensor]:
    sizes = [part.num_bytes for part in parts]
    pieces = torch.from_numpy(matrix).split(sizes, dim=-1) if parts else ()
    return {part.name: part.from_bytes(piece) for part, piece in zip(parts, pieces, strict=True)}


def cosine_errors(signal: TeacherSignal, decoded: TeacherSignal) -> dict[str, Tensor]:
    """1 − cosine of every unit row, per field that has any: float64 [rows], without those zero in both.

    Every row, because means of ragged batches do not add up to a mean. A row that is zero in one alone counts
    1. Float64, because fp16's error is below the resolution of 1 − cosine in fp32.
    """
    found = {}
    for name in ("cls_states_BKH", "cls_gradients_BKVH", "embedding_gradient_BLVH"):
        before, after = getattr(signal, name), getattr(decoded, name)
        if before is None:
            continue
        a, b = before.flatten(end_dim=-2).double(), after.flatten(end_dim=-2).double()
        is_there = (a != 0).any(dim=-1) | (b != 0).any(dim=-1)
        found[name] = 1.0 - functional.cosine_similarity(a[is_there], b[is_there], dim=-1)
    return found

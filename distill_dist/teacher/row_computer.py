"""A teacher model behind rows: requests in, encoded rows out."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import torch

from distill_dist.models.encoder import EncoderParts
from distill_dist.records import SignalSpec
from distill_dist.teacher.compute import check_sane, compute_signal, describe_model
from distill_dist.teacher.row_codec import RowCodec, WireTypes
from distill_dist.teacher.wire import Request


class RowComputer:
    """What a host calls for rows that nobody has computed yet."""

    def __init__(
        self, parts: EncoderParts, device: torch.device, *, types: WireTypes, fingerprint: str
    ) -> None:
        """``parts`` of a model in eval mode on ``device``, whose identity is ``fingerprint``."""
        self._parts, self._device = parts, device
        self.types, self.fingerprint = types, fingerprint

    def __call__(self, request: Request, spec: SignalSpec) -> list[bytes]:
        """The encoded signal of every row. Raises NotSane."""
        labels_B = None if request.labels_B is None else request.labels_B.long().to(self._device)
        signal = compute_signal(self._parts, *request.unpack(self._device), spec, labels_B=labels_B)
        check_sane(signal)
        return self._codec(spec).encode(signal, request.lengths_B)

    def describe(self) -> dict[str, Any]:
        """What a student has to know to ask and to decode; hosts that teach the same say the same."""
        return {
            **describe_model(self._parts),
            "fingerprint": self.fingerprint,
            "classes": self._classes,
            "hidden_size": self._parts.hidden_size,
            "embedding_size": self._parts.embedding_size,
            "wire": asdict(self.types),
        }

    @property
    def _classes(self) -> int:
        config: Any = self._parts.model.config
        return int(config.num_labels)

    def _codec(self, spec: SignalSpec) -> RowCodec:
        parts = self._parts
        return RowCodec(spec, self._classes, parts.hidden_size, parts.embedding_size, self.types)

"""A teacher model behind rows: requests in, encoded rows out."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import torch

from distill_dist.models.encoder import EncoderParts
from distill_dist.records import SignalSpec, TeacherSignal
from distill_dist.teacher.compute import check_sane, compute_signal, describe_model
from distill_dist.teacher.row_codec import RowCodec, WireTypes, cosine_errors
from distill_dist.teacher.sanity import Probe, difference
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
        signal = self._signal(request, spec)
        check_sane(signal)
        return self.codec(spec).encode(signal, request.lengths_B)

    def probe(self, request: Request) -> Probe:
        """What the teacher says of these rows, for sanity.py."""
        signal = self._signal(request, self._probed)
        norm_BLV = signal.embedding_gradient_norm_BLV
        return Probe(
            logits=signal.logits_BC.tolist(), saliency=[] if norm_BLV is None else norm_BLV[..., 0].tolist()
        )

    def wire_report(self, request: Request) -> dict[str, float]:
        """What the wire's types cost on these rows: per kind of unit rows the mean of 1 − cosine of what comes out and
        what went in."""
        codec, signal = self.codec(self._probed), self._signal(request, self._probed)
        rows = codec.encode(signal, request.lengths_B)
        decoded = codec.decode(rows, length=request.input_ids_BL.shape[1])
        errors = cosine_errors(signal.to("cpu"), decoded)
        # rounding may leave a cosine above 1
        return {name.rpartition("_")[0]: max(0.0, float(error.mean())) for name, error in errors.items()}

    def row_difference(self, request: Request) -> float:
        """The largest change of a number that is said of a row when it is asked beside others, over the largest number:
        0 on a CPU, whose kernels see full vectors alone (compute.py); on a device rounding."""
        whole, found = self.probe(request), []
        for rows in (range(0, len(request.lengths_B), 2), range(1, len(request.lengths_B), 2)):
            if rows:
                part = request.take(rows[::-1])
                width = part.input_ids_BL.shape[1]
                found.append(difference(whole.take(rows[::-1], width=width), self.probe(part)))
        return max(found)

    def measure(self, rows: Request) -> dict[str, Any]:
        """What stands beside ``describe`` and may differ between hosts that teach the same: last digits."""
        return {"wire_report": self.wire_report(rows), "row_difference": self.row_difference(rows)}

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

    def introduce(self, rows: Request) -> dict[str, Any]:
        """``describe``, with what the teacher says of ``rows`` and what was measured on them."""
        return {**self.describe(), "probe": asdict(self.probe(rows)), **self.measure(rows)}

    def _signal(self, request: Request, spec: SignalSpec) -> TeacherSignal:
        labels_B = None if request.labels_B is None else request.labels_B.long().to(self._device)
        return compute_signal(self._parts, *request.unpack(self._device), spec, labels_B=labels_B)

    @property
    def _probed(self) -> SignalSpec:
        """Of every kind that travels; [CLS] of the last layer but one, which no method leaves out."""
        if self._parts.logits_alone:
            return SignalSpec()  # nor is a large model's backward paid for
        layer = max(1, len(self._parts.layers) - 1)
        return SignalSpec((layer,), cls_states=True, cls_gradients=True, embedding_gradient=True)

    @property
    def _classes(self) -> int:
        config: Any = self._parts.model.config
        return int(config.num_labels)

    def codec(self, spec: SignalSpec) -> RowCodec:
        """Of this teacher's rows."""
        parts = self._parts
        return RowCodec(spec, self._classes, parts.hidden_size, parts.embedding_size, self.types)

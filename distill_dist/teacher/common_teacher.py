"""What the hosts of one model say of it, and that they all say the same."""

from __future__ import annotations

import logging
from typing import Any

from distill_dist.errors import UserError
from distill_dist.records import SignalSpec
from distill_dist.teacher.identity import Identity
from distill_dist.teacher.row_codec import RowCodec, WireTypes
from distill_dist.teacher.sanity import Probe, drift

_log = logging.getLogger(__name__)
_MEASURED = ("wire_report", "row_difference")  # on a device: the last digits of two hosts may differ


class CommonTeacher:
    """The description that the first host gave (RowComputer.introduce), and that every other host is held to."""

    def __init__(self) -> None:
        self._about: dict[str, Any] = {}
        self._row_difference = 0.0

    def compare(self, name: str, found: dict[str, Any]) -> str | None:
        """How far what ``name`` says on the probe's rows is off; None: not more than by rounding.

        Raises UserError where it has another model.
        """
        self._about = self._about or found
        old, new = dict(self._about), dict(found)
        before, now = Probe(**old.pop("probe")), Probe(**new.pop("probe"))
        for about in (old, new):
            for measured in _MEASURED:
                about.pop(measured)
        if new != old:
            raise UserError(
                f"{name} does not teach what the others do: teacher.path must be one model on all nodes"
            )
        reason = drift(before, now)
        if reason is None and found["row_difference"] > self._row_difference:
            self._row_difference = found["row_difference"]
            _log.info(
                "%s: the rows beside a row change its signal by up to %.1e of the largest number",
                name,
                self._row_difference,
            )
        return reason

    def describe(self) -> dict[str, Any]:
        """`parameters`, and `row_difference` of the host that has the largest."""
        return {"parameters": self._about["parameters"], "row_difference": self._row_difference}

    @property
    def fingerprint(self) -> str:
        """Of the model."""
        return str(self._about["fingerprint"])

    @property
    def identity(self) -> Identity:
        """Who teaches, as the first host said."""
        return Identity(self.fingerprint, Probe(**self._about["probe"]))

    @property
    def types(self) -> WireTypes:
        """How its rows travel."""
        return WireTypes(**self._about["wire"])

    def codec(self, spec: SignalSpec) -> RowCodec:
        """Of its rows."""
        about = self._about
        return RowCodec(spec, about["classes"], about["hidden_size"], about["embedding_size"], self.types)

    def wire(self, spec: SignalSpec, tokens: float) -> dict[str, float]:
        """What a row of ``tokens`` costs (Teacher.wire); the loss is the first host's, on rows of the probe."""
        codec, lost = self.codec(spec), self._about["wire_report"]
        costs = {kind: lost[kind] for kind in codec.unit_kinds if kind in lost}
        return {"bytes_per_row": codec.mean_row_bytes(tokens), **costs}

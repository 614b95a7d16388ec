"""Who a teacher is, in what a checkpoint holds: a run that goes on must go on with the same one."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from distill_dist.teacher.sanity import Probe, drift

# Of a number of the probe: so many tell an fp32 from its neighbours.
DIGITS = 9


@dataclass(frozen=True)
class Identity:
    """Which model it is, and what it said of the probe's rows."""

    fingerprint: str  # see row_keys.teacher_fingerprint
    probe: Probe

    def to_json(self) -> dict[str, Any]:
        """The inverse of :func:`read_identity`."""
        return {
            "fingerprint": self.fingerprint,
            "logits": _rounded(self.probe.logits),
            "saliency": _rounded(self.probe.saliency),
        }


def joint_fingerprint(teachers: Sequence[Identity]) -> str:
    """Of all ``teachers``, in their order: sha256."""
    return hashlib.sha256("".join(each.fingerprint for each in teachers).encode()).hexdigest()


def read_identity(saved: dict[str, Any]) -> Identity:
    """What ``to_json`` gave."""
    return Identity(saved["fingerprint"], Probe(saved["logits"], saved["saliency"]))


def change(before: Identity, now: Identity) -> str | None:
    """Why ``now`` must not go on where ``before`` taught; None: it may."""
    if now.fingerprint != before.fingerprint:
        return (
            f"it is another model (fingerprint {now.fingerprint[:12]} instead of {before.fingerprint[:12]}: weights, "
            "configuration or tokenizer)"
        )
    reason = drift(before.probe, now.probe)
    return None if reason is None else f"it is the same model and does not say what it said: {reason}"


def _rounded(rows: Sequence[Sequence[float]]) -> list[list[float]]:
    return [[float(f"{value:.{DIGITS}g}") for value in row] for row in rows]

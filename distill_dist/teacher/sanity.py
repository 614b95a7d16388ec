"""Whether a teacher still teaches what it did: a few rows of its students' data, asked again and again.

A model that lost its head on the way, weights that a device flipped, a node with other files: all of them answer. What
they say of the same rows gives them away.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from distill_dist.teacher.compute import not_finite

# Rows of the training data that a teacher is asked about.
PROBE_ROWS = 16
# Of the largest number. Other devices and shapes of a batch differ by 1e-6 in fp32, and by some 1e-4 where products
# are rounded to TF32; a flipped exponent, a missing layer or other weights by tenths.
TOLERANCE = 1e-3
# Of the largest logit, at least of 1: below it classes are told apart by rounding alone.
FLAT = 1e-5


@dataclass(frozen=True)
class Probe:
    """What a teacher says of ``PROBE_ROWS`` rows, in plain numbers that travel as JSON."""

    logits: list[list[float]]  # [rows][classes]
    saliency: list[list[float]]  # [rows][tokens], norms of the gradient at the embeddings; empty: it has none

    def take(self, rows: Sequence[int], *, width: int) -> Probe:
        """Of some rows, in the order of ``rows``, padded to ``width`` tokens."""
        saliency = [self.saliency[row][:width] for row in rows] if self.saliency else []
        return Probe(logits=[self.logits[row] for row in rows], saliency=saliency)


class Drifted(RuntimeError):
    """A teacher that does not say any more what it said: nothing that it says from now on may be used."""


def fault(probe: Probe) -> str | None:
    """Why nobody can learn from a teacher that says this; None: one can."""
    logits_NC = np.array(probe.logits)
    if not np.isfinite(logits_NC).all():
        return not_finite("logits")
    if not all(np.isfinite(row).all() for row in probe.saliency):
        return not_finite("gradients")
    spread_N = logits_NC.max(axis=1) - logits_NC.min(axis=1)
    if (spread_N <= FLAT * max(1.0, float(np.abs(logits_NC).max()))).all():
        return (
            f"it gives all classes of each of {len(logits_NC)} rows the same logit: is teacher.path a fine-tuned "
            "classifier, with the weights of its head?"
        )
    return None


def drift(before: Probe, now: Probe) -> str | None:
    """What differs between two answers on the same rows by more than rounding; None: nothing."""
    for name, old, new in (
        ("logits", before.logits, now.logits),
        ("gradients", before.saliency, now.saliency),
    ):
        if [len(row) for row in old] != [len(row) for row in new]:
            return f"its {name} on the probe's rows have other shapes"
        share = _difference(old, new)
        if not share <= TOLERANCE:  # nor NaN
            return (
                f"its {name} on {len(old)} rows differ by {share:.1e} of the largest (limit {TOLERANCE:.0e})"
            )
    return None


def difference(one: Probe, other: Probe) -> float:
    """The largest difference of two numbers on the same rows, over the largest of their kind."""
    return max(_difference(one.logits, other.logits), _difference(one.saliency, other.saliency))


def _difference(old: Sequence[Sequence[float]], new: Sequence[Sequence[float]]) -> float:
    if not old:
        return 0.0
    a, b = (np.concatenate([np.asarray(row, dtype=np.float64) for row in rows]) for rows in (old, new))
    return float(np.abs(a - b).max() / max(np.abs(a).max(), np.finfo(np.float32).tiny))

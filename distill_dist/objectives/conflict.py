"""How far several teachers contradict each other, row by row (METHOD.md §7)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import torch
from torch import Tensor

from distill_dist.records import Batch, JoinedSignal, SignalSpec, TeacherSignal, at_least_fp32

DISAGREEMENT, COSINE = "conflict/label_disagreement", "conflict/gradient_cosine"


def conflict_tags(spec: SignalSpec | None) -> tuple[str, ...]:
    """Tags of what ``conflict_sums`` finds in signals for ``spec``."""
    if spec is None:
        return ()
    return (DISAGREEMENT, COSINE) if spec.cls_gradients or spec.embedding_gradient else (DISAGREEMENT,)


def label_disagreement_B(logits: Sequence[Tensor]) -> Tensor:
    """1 where not all predict the same class, else 0; fp32 [B]."""
    labels_MB = torch.stack([each.argmax(dim=-1) for each in logits])
    return (labels_MB != labels_MB[0]).any(dim=0).float()


def gradient_cosine_B(signals: Sequence[TeacherSignal], mask_BL: Tensor) -> Tensor | None:
    """Cosine of two teachers' gradients [B], mean over pairs, classes and positions; None where there are none.

    Of the gradients at the embeddings, over real tokens; of those at [CLS] where only they are there. A zero row has
    cosine 0 with every other.
    """
    unit = (
        "embedding_gradient_BLVH" if signals[0].embedding_gradient_BLVH is not None else "cls_gradients_BKVH"
    )
    rows = [getattr(each, unit) for each in signals]
    if rows[0] is None:
        return None
    pairs = [(at_least_fp32(a) * at_least_fp32(b)).sum(dim=-1).mean(dim=-1) for a, b in combinations(rows, 2)]
    cosine_BX = torch.stack(pairs).mean(dim=0)
    if unit == "cls_gradients_BKVH":
        return cosine_BX.mean(dim=1)
    real_BL = mask_BL.to(cosine_BX.device, cosine_BX.dtype)
    return (cosine_BX * real_BL).sum(dim=1) / real_BL.sum(dim=1).clamp(min=1)


def conflict_sums(signal: TeacherSignal | None, batch: Batch) -> dict[str, tuple[Tensor, Tensor]]:
    """Tag -> (sum, count) over the real rows of ``batch``, without a host sync; empty with one teacher."""
    if not isinstance(signal, JoinedSignal) or signal.disagreement_B is None:
        return {}
    real_B = batch.is_real_B.to(signal.disagreement_B.device)
    found = {DISAGREEMENT: (signal.disagreement_B * real_B, real_B)}
    if signal.gradient_cosine_B is not None:
        found[COSINE] = (signal.gradient_cosine_B * real_B, real_B)
    return {name: (values.sum(), counts.sum()) for name, (values, counts) in found.items()}

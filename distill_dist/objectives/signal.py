"""The scalars whose gradients are aligned: margins of chosen classes (METHOD.md §1)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from distill_dist.records import at_least_fp32


def signal_classes_BV(
    signal: str, logits_BC: Tensor, *, teacher_logits_BC: Tensor | None, labels_B: Tensor | None
) -> Tensor:
    """The classes [B, V] whose margins are differentiated, by the name of the ``signal``.

    `own_max`: the class that the model predicts itself (the paper's choice). `teacher_max`: the teacher's, for
    both models; the teacher itself gives None for its own logits. `label`: the true class. `all_classes`:
    every class; of two classes one is enough, since the margin of the other is its negative.
    """
    if signal == "own_max":
        return logits_BC.argmax(dim=-1, keepdim=True)
    if signal == "teacher_max":
        return (logits_BC if teacher_logits_BC is None else teacher_logits_BC).argmax(dim=-1, keepdim=True)
    if signal == "label":
        assert labels_B is not None
        return labels_B[:, None]
    assert signal == "all_classes", signal
    return all_classes_BV(logits_BC)


def all_classes_BV(logits_BC: Tensor) -> Tensor:
    """Every class of every row [B, V]; only class 0 of two, because m_1 = −m_0."""
    num_rows, num_classes = logits_BC.shape
    views = num_all_classes_views(num_classes)
    return torch.arange(views, device=logits_BC.device).expand(num_rows, views)


def num_all_classes_views(num_classes: int) -> int:
    """V of ``all_classes_BV``."""
    return 1 if num_classes == 2 else num_classes


def margins_BV(logits_BC: Tensor, classes_BV: Tensor) -> Tensor:
    """z_c − logsumexp of the other classes for every chosen class [B, V], in fp32 or better.

    Its gradient has the direction of ∇softmax(z)_c, which the paper aligns, without vanishing when the model
    is sure: ∇p_c = p_c(1 − p_c)·∇margin. Summed over the batch it gives every sequence's own gradient in one
    backward, because sequences do not interact.
    """
    logits_BC = at_least_fp32(logits_BC)
    chosen_BVC = functional.one_hot(classes_BV, logits_BC.shape[-1]).bool()
    others_BV = logits_BC[:, None].masked_fill(chosen_BVC, float("-inf")).logsumexp(dim=-1)
    return logits_BC.gather(1, classes_BV) - others_BV


def differentiated_BV(classes_BV: Tensor, logits_BC: Tensor, *, every_class: bool) -> Tensor:
    """The classes that a backward is run for: those of the signal, or all, which contain them."""
    return all_classes_BV(logits_BC) if every_class else classes_BV


def pick_views(gradients: Tensor, classes_BV: Tensor, views_BV: Tensor) -> Tensor:
    """The gradients [B, X, V, H] for ``classes_BV``, out of those found for ``views_BV`` (``differentiated_BV``)."""
    if classes_BV is views_BV:
        return gradients
    if views_BV.shape[1] == 1 and classes_BV.shape[1] == 1:  # of two classes, where m_1 = −m_0
        sign_B111 = 1 - 2 * (classes_BV != views_BV).to(gradients.dtype)[:, :, None, None]
        return gradients * sign_B111
    index = classes_BV[:, None, :, None].expand(-1, gradients.shape[1], -1, gradients.shape[3])
    return gradients.gather(2, index)

"""The scalar whose gradient is aligned: the margin of a class (METHOD.md §1)."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from distill_dist.records import at_least_fp32


def own_class_B(logits_BC: Tensor) -> Tensor:
    """The class that each model predicts itself (`own_max`, the paper's choice)."""
    return logits_BC.argmax(dim=-1)


def margin_B(logits_BC: Tensor, class_B: Tensor) -> Tensor:
    """z_c − logsumexp of the other classes, per sequence [B], in fp32 or better.

    Its gradient has the direction of ∇softmax(z)_c, which the paper aligns, without vanishing when the model
    is sure: ∇p_c = p_c(1 − p_c)·∇margin. Summed over the batch it gives every sequence's own gradient in one
    backward, because sequences do not interact.
    """
    logits_BC = at_least_fp32(logits_BC)
    chosen_BC = functional.one_hot(class_B, logits_BC.shape[-1]).bool()
    others_B = logits_BC.masked_fill(chosen_BC, float("-inf")).logsumexp(dim=-1)
    return logits_BC.gather(1, class_B[:, None])[:, 0] - others_B

"""Attribution matching: which tokens decide, not which way (METHOD.md §6; AD-KD, ACL 2023). In fp32 or better."""

from __future__ import annotations

from torch import Tensor

from distill_dist.objectives.alignment import unit_rows
from distill_dist.records import at_least_fp32


def attribution_BLC(gradients_BLVH: Tensor, embedding_BLH: Tensor, mask_BL: Tensor, *, top_k: int) -> Tensor:
    """How much every token counts for every class [B, L, V]: unit L2 norm over the tokens, 0 on padding.

    saliency_t = ‖the ``top_k`` entries of g_t ⊙ E_t of largest magnitude‖₂; 0, or a ``top_k`` of at least the
    width, means every entry. ``gradients_BLVH`` are raw: a norm divided out per token is what is compared here.
    They are of margins and not of probabilities: ∇p_c = p_c(1 − p_c)·∇m_c, and that factor, one per sequence
    and class, cancels in the norm over the tokens. Of two classes one view is enough: m_1 = −m_0.
    A token or a sequence of zeros stays zero and has a zero derivative.
    """
    assert top_k >= 0, top_k
    products_BLVH = at_least_fp32(gradients_BLVH) * at_least_fp32(embedding_BLH).unsqueeze(2)
    products_BLVH = products_BLVH.masked_fill((mask_BL == 0)[:, :, None, None], 0.0)
    if 0 < top_k < products_BLVH.shape[-1]:
        # which entries are kept is a constant; among equal magnitudes any choice gives the same norm
        kept = products_BLVH.detach().abs().topk(top_k, dim=-1, sorted=False).indices
        products_BLVH = products_BLVH.gather(-1, kept)
    _, saliency_BLV = unit_rows(products_BLVH)
    unit_BVL, _ = unit_rows(saliency_BLV.transpose(1, 2))
    return unit_BVL.transpose(1, 2)


def attribution_distance_B(student_BLC: Tensor, teacher_BLC: Tensor, *, norm: str) -> tuple[Tensor, Tensor]:
    """(mean over classes of Σ_t |a_S − a_T| (`l1`) or Σ_t (a_S − a_T)² (`l2`) [B], whether one is all zero [B]).

    Both are ``attribution_BLC`` of the same tokens; the models' widths may differ. Where either model's
    attribution of a class is zero on every token there is nothing to compare: that class's distance is 0 and
    the sequence is flagged, an error which the trainer counts.
    """
    assert norm in ("l1", "l2"), norm
    difference_BLC = at_least_fp32(student_BLC) - at_least_fp32(teacher_BLC)
    distance_BC = (difference_BLC.abs() if norm == "l1" else difference_BLC.square()).sum(dim=1)
    is_empty_BC = (student_BLC == 0).all(dim=1) | (teacher_BLC == 0).all(dim=1)
    return distance_BC.masked_fill(is_empty_BC, 0.0).mean(dim=-1), is_empty_BC.any(dim=-1)

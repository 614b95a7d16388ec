"""Cross-entropy and distillation, one value per sequence (METHOD.md §1). In fp32 or better."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from distill_dist.records import at_least_fp32


def cross_entropy_B(logits_BC: Tensor, labels_B: Tensor) -> Tensor:
    """−log softmax(z)_y per sequence [B], nats."""
    return functional.cross_entropy(at_least_fp32(logits_BC), labels_B, reduction="none")


def distillation_B(student_BC: Tensor, teacher_BC: Tensor, *, temperature: float, per_class: bool) -> Tensor:
    """τ²·KL(softmax(z_T/τ) ‖ softmax(z_S/τ)) per sequence [B], summed over classes, nats.

    ``per_class`` divides by the number of classes: the scale of the paper's published code (METHOD.md §1).
    """
    log_student = functional.log_softmax(at_least_fp32(student_BC) / temperature, dim=-1)
    log_teacher = functional.log_softmax(at_least_fp32(teacher_BC) / temperature, dim=-1)
    divergence_B = functional.kl_div(log_student, log_teacher, reduction="none", log_target=True).sum(-1)
    scale = temperature**2 / (student_BC.shape[-1] if per_class else 1)
    return divergence_B * scale

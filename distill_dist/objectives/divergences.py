"""Cross-entropy and distillation, one value per sequence (METHOD.md §1). All in fp32."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional


def cross_entropy_B(logits_BC: Tensor, labels_B: Tensor) -> Tensor:
    """−log softmax(z)_y per sequence [B], nats."""
    return functional.cross_entropy(logits_BC.float(), labels_B, reduction="none")


def distillation_B(student_BC: Tensor, teacher_BC: Tensor, *, temperature: float, per_class: bool) -> Tensor:
    """τ²·KL(softmax(z_T/τ) ‖ softmax(z_S/τ)) per sequence [B], summed over classes, nats.

    ``per_class`` divides by the number of classes: the scale of the paper's published code (METHOD.md §1).
    """
    log_student = functional.log_softmax(student_BC.float() / temperature, dim=-1)
    log_teacher = functional.log_softmax(teacher_BC.float() / temperature, dim=-1)
    divergence_B = functional.kl_div(log_student, log_teacher, reduction="none", log_target=True).sum(-1)
    scale = temperature**2 / (student_BC.shape[-1] if per_class else 1)
    return divergence_B * scale

"""What travels between a student and a teacher: compact tensors on the CPU, no padding in gradients."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from distill_dist.records import Batch, TeacherSignal


@dataclass(frozen=True)
class Request:
    """Token ids of one micro-batch. Rows are padded on the right, so lengths stand for the mask."""

    input_ids_BL: Tensor  # int32
    lengths_B: Tensor  # int32
    token_type_ids_BL: Tensor  # uint8

    def unpack(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """(input ids, attention mask, token types), int64 on ``device``."""
        positions_L = torch.arange(self.input_ids_BL.shape[1])
        mask_BL = (positions_L < self.lengths_B[:, None]).long()
        found = (self.input_ids_BL.long(), mask_BL, self.token_type_ids_BL.long())
        return tuple(tensor.to(device) for tensor in found)  # type: ignore[return-value]


@dataclass(frozen=True)
class WireSignal:
    """A teacher's answer; per-token fields hold real tokens only, rows one after another ([N, …])."""

    logits_BC: Tensor
    cls_states_BKH: Tensor | None
    cls_gradients_BKH: Tensor | None
    embedding_gradient_NH: Tensor | None
    embedding_gradient_norm_N: Tensor | None


def pack_request(batch: Batch) -> Request:
    """The question a student asks about ``batch``, on the CPU."""
    return Request(
        input_ids_BL=batch.input_ids_BL.to("cpu", torch.int32),
        lengths_B=batch.attention_mask_BL.sum(dim=1).to("cpu", torch.int32),
        token_type_ids_BL=batch.token_type_ids_BL.to("cpu", torch.uint8),
    )


def pack_signal(signal: TeacherSignal, attention_mask_BL: Tensor) -> WireSignal:
    """``signal`` without its padding, on the CPU."""
    real_BL = attention_mask_BL.bool()
    gradient, norm = signal.embedding_gradient_BLH, signal.embedding_gradient_norm_BL
    return WireSignal(
        # Clones, because a slice would bring the storage of the rows that filled up its batch.
        logits_BC=signal.logits_BC.cpu().clone(),
        cls_states_BKH=None if signal.cls_states_BKH is None else signal.cls_states_BKH.cpu().clone(),
        cls_gradients_BKH=None
        if signal.cls_gradients_BKH is None
        else signal.cls_gradients_BKH.cpu().clone(),
        embedding_gradient_NH=None if gradient is None else gradient[real_BL].cpu(),
        embedding_gradient_norm_N=None if norm is None else norm[real_BL].cpu(),
    )


def unpack_signal(wire: WireSignal, attention_mask_BL: Tensor) -> TeacherSignal:
    """The inverse of ``pack_signal`` for the batch with this mask; on the mask's device."""
    real_BL = attention_mask_BL.bool()
    device = real_BL.device

    def scatter(values: Tensor | None) -> Tensor | None:
        if values is None:
            return None
        padded = torch.zeros(*real_BL.shape, *values.shape[1:], dtype=values.dtype, device=device)
        padded[real_BL] = values.to(device)
        return padded

    return TeacherSignal(
        logits_BC=wire.logits_BC.to(device),
        cls_states_BKH=None if wire.cls_states_BKH is None else wire.cls_states_BKH.to(device),
        cls_gradients_BKH=None if wire.cls_gradients_BKH is None else wire.cls_gradients_BKH.to(device),
        embedding_gradient_BLH=scatter(wire.embedding_gradient_NH),
        embedding_gradient_norm_BL=scatter(wire.embedding_gradient_norm_N),
    )

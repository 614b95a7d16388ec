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
    labels_B: Tensor | None  # int32, where the signal is a function of the label too

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
    cls_gradients_BKVH: Tensor | None
    embedding_gradient_NVH: Tensor | None
    embedding_gradient_norm_NV: Tensor | None
    attribution_NC: Tensor | None
    noisy_logits_BDC: Tensor | None


def pack_request(batch: Batch, *, labels: bool) -> Request:
    """The question a student asks about ``batch``, on the CPU; with its ``labels`` where the signal needs them."""
    return Request(
        input_ids_BL=batch.input_ids_BL.to("cpu", torch.int32),
        lengths_B=batch.attention_mask_BL.sum(dim=1).to("cpu", torch.int32),
        token_type_ids_BL=batch.token_type_ids_BL.to("cpu", torch.uint8),
        labels_B=batch.labels_B.to("cpu", torch.int32) if labels else None,
    )


def pack_signal(signal: TeacherSignal, attention_mask_BL: Tensor) -> WireSignal:
    """``signal`` without its padding, on the CPU."""
    real_BL = attention_mask_BL.bool()

    def rows(values: Tensor | None) -> Tensor | None:
        # A clone, because a slice would bring the storage of the rows that filled up its batch.
        return None if values is None else values.cpu().clone()

    def tokens(values: Tensor | None) -> Tensor | None:
        return None if values is None else values[real_BL].cpu()

    return WireSignal(
        logits_BC=signal.logits_BC.cpu().clone(),
        cls_states_BKH=rows(signal.cls_states_BKH),
        cls_gradients_BKVH=rows(signal.cls_gradients_BKVH),
        embedding_gradient_NVH=tokens(signal.embedding_gradient_BLVH),
        embedding_gradient_norm_NV=tokens(signal.embedding_gradient_norm_BLV),
        attribution_NC=tokens(signal.attribution_BLC),
        noisy_logits_BDC=rows(signal.noisy_logits_BDC),
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
        logits_BC=wire.logits_BC,
        cls_states_BKH=wire.cls_states_BKH,
        cls_gradients_BKVH=wire.cls_gradients_BKVH,
        embedding_gradient_BLVH=scatter(wire.embedding_gradient_NVH),
        embedding_gradient_norm_BLV=scatter(wire.embedding_gradient_norm_NV),
        attribution_BLC=scatter(wire.attribution_NC),
        noisy_logits_BDC=wire.noisy_logits_BDC,
    ).to(device)

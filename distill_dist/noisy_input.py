"""An encoder at its embeddings plus noise: what noisy-input distillation compares (METHOD.md §6)."""

from __future__ import annotations

import torch
from torch import Tensor

from distill_dist.models.encoder import EncoderParts
from distill_dist.models.hooks import Displacement, watch_points
from distill_dist.objectives.noise import embedding_noise_BLH
from distill_dist.records import Inputs, NoiseSpec


def noisy_logits_BDC(parts: EncoderParts, inputs: Inputs, spec: NoiseSpec) -> Tensor:
    """Logits [B, D, C], one forward per draw; graph attached where gradients are on.

    The noise is a function of the token ids, so teacher and student of one embedding width see the same.
    """
    found = []
    for draw in range(spec.draws):
        noise_BLH = embedding_noise_BLH(*inputs[:2], width=parts.embedding_size, spec=spec, draw=draw)
        beside = Displacement(noise_BLH.to(inputs[0].device), None)
        with watch_points(
            parts, layers=(), embedding_gradient=False, cls_gradients=False, displacement=beside
        ):
            found.append(parts.logits_BC(*inputs))
    return torch.stack(found, dim=1)

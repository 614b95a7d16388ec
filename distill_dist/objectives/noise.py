"""Distillation at noisy embeddings: Jacobian matching without second derivatives (METHOD.md §6).

Source: Srinivas & Fleuret, "Knowledge Transfer with Jacobian Matching", ICML 2018.
"""

from __future__ import annotations

import hashlib
import struct

import torch
from torch import Tensor

from distill_dist.objectives.divergences import distillation_B
from distill_dist.records import NoiseSpec


def embedding_noise_BLH(
    input_ids_BL: Tensor, mask_BL: Tensor, *, width: int, spec: NoiseSpec, draw: int
) -> Tensor:
    """Normal noise of ``spec.std`` for every real token, 0 on padding: fp32 [B, L, H] on the CPU.

    A row's noise is a function of (``spec.seed``, ``draw``, its real token ids, ``width``): teacher and student
    draw the same without sending it, and a cached signal stays right whatever batch the row came in. Equal on
    all machines up to the last bits of a logarithm and a cosine. Ids on a GPU cost a wait for it.
    """
    assert 0 <= draw < spec.draws, draw
    is_real_BL = mask_BL.bool().cpu()
    ids_BL = input_ids_BL.to("cpu", torch.int32)
    noise_BLH = torch.zeros(*ids_BL.shape, width)
    for ids_L, is_real_L, noise_LH in zip(ids_BL, is_real_BL, noise_BLH, strict=True):
        real_ids_N = ids_L[is_real_L]
        generator = torch.Generator().manual_seed(_row_seed(real_ids_N, seed=spec.seed, draw=draw))
        noise_LH[is_real_L] = torch.randn(len(real_ids_N), width, generator=generator) * spec.std
    return noise_BLH


def _row_seed(real_ids_N: Tensor, *, seed: int, draw: int) -> int:
    """64 bits of a hash of the row; Python's own `hash` differs from process to process.

    torch's CPU generator keeps 32 of them: among 400,000 rows some twenty pairs share their noise, as harmless
    as an equal draw.
    """
    content = struct.pack("<qq", seed, draw) + real_ids_N.numpy().astype("<i4").tobytes()
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little")


def all_noise_BDLH(input_ids_BL: Tensor, mask_BL: Tensor, *, width: int, spec: NoiseSpec) -> Tensor:
    """``embedding_noise_BLH`` of every draw [B, D, L, H]."""
    ids_BL, mask_BL = input_ids_BL.cpu(), mask_BL.cpu()
    draws = [embedding_noise_BLH(ids_BL, mask_BL, width=width, spec=spec, draw=k) for k in range(spec.draws)]
    return torch.stack(draws, dim=1)


def noisy_distillation_B(
    student_noisy_BDC: Tensor, teacher_noisy_BDC: Tensor, *, temperature: float, per_class: bool
) -> Tensor:
    """Mean over the draws of KD at E + ξ per sequence [B], nats; both models' logits under the same noise."""
    divergence_BD = distillation_B(
        student_noisy_BDC, teacher_noisy_BDC, temperature=temperature, per_class=per_class
    )
    return divergence_BD.mean(dim=1)

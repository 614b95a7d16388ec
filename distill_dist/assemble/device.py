"""Where one process computes."""

from __future__ import annotations

import torch

from distill_dist.errors import UserError


def pick_device(name: str, local_rank: int) -> torch.device:
    """The device of `cluster.device` for process ``local_rank`` of its host. Raises UserError where it is not there."""
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise UserError(
            f"cluster.device={name}, but torch finds no CUDA device: set cluster.device=cpu or auto"
        )
    if local_rank >= torch.cuda.device_count():
        raise UserError(
            f"process {local_rank} of this host has no CUDA device: there are {torch.cuda.device_count()}. Start no "
            "more processes than that, or set cluster.device=cpu"
        )
    device = torch.device("cuda", local_rank)
    torch.cuda.set_device(device)
    return device

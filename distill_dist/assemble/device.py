"""Where one process computes."""

from __future__ import annotations

import os

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
        # Slurm's --gpus-per-task shows every process its own device alone; ours count those of the node.
        of_slurm = (
            ", ask Slurm for them with --gpus-per-node, not per task" if "SLURM_PROCID" in os.environ else ""
        )
        raise UserError(
            f"process {local_rank} of this host has no CUDA device: it sees {torch.cuda.device_count()}. Start no "
            f"more processes than there are{of_slurm}, or set cluster.device=cpu"
        )
    device = torch.device("cuda", local_rank)
    torch.cuda.set_device(device)
    return device

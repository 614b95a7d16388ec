"""What the ranks of test_nonfinite.py do. No pytest in here."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import nn

from distill_dist.comm.environment import prepare_environment, read_environment
from distill_dist.comm.members import peers
from distill_dist.comm.rendezvous import connect_store
from distill_dist.comm.students import StudentGroup
from distill_dist.engine import Engine
from distill_dist.errors import UserError

WAIT_S = 60.0


def steps(stage: int, precision: str) -> dict[str, Any]:
    """One good step and one whose gradient is infinite on student 0 alone: the norms, or what was raised."""
    launch = read_environment(os.environ)
    store = connect_store(launch, timeout_s=WAIT_S)
    known = peers(store, launch.world_size)
    prepare_environment(os.environ, launch, student_rank=launch.rank, students=launch.world_size)
    ranks = tuple(range(launch.world_size))
    group = StudentGroup(
        store, rank=launch.rank, global_ranks=ranks, peers=known, backend="gloo", timeout_s=WAIT_S
    )
    torch.manual_seed(0)
    engine = Engine(
        nn.Linear(3, 2),
        {"zero_optimization": {"stage": stage}},
        students=group.size,
        optimizer="adamw",
        weight_decay=0.0,
        clip_norm=1.0,
        precision=precision,
    )
    found: list[float | str | None] = []
    for scale in (1.0, float("inf") if launch.rank == 0 else 1.0):
        kind = torch.bfloat16 if precision == "bf16" else torch.float32
        engine.backward((engine.module(torch.ones(1, 3, dtype=kind)) * scale).float().sum(), last=True)
        try:
            found.append(engine.step(0.1, measure_norm=True))
        except UserError as error:
            found.append(str(error))
    group.leave()
    return {"found": [repr(value) if isinstance(value, float) else value for value in found]}

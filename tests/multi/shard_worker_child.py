"""The worker of one member with a tiny teacher, inside whose forward some rows harm it. No pytest in here.

Harm is done once, in the second layer, where the other members already wait for this one's weights of the third.
"""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tiny_encoders import ragged_batch, tiny_encoder

from distill_dist.assemble import shard_worker
from distill_dist.comm.attempts import Attempts
from distill_dist.comm.shard_group import ShardGroup
from distill_dist.config.schema import RunConfig
from distill_dist.errors import UserError
from distill_dist.models.encoder import encoder_parts, layer_list
from distill_dist.teacher.row_codec import WireTypes
from distill_dist.teacher.row_computer import RowComputer
from distill_dist.teacher.row_keys import teacher_fingerprint
from distill_dist.teacher.wire import Request, pack_request

DIES, STOPS, NO_MEMORY, WRONG = range(31, 35)
CLASSES, SIZE = 3, 2


def teacher() -> tuple[Any, RowComputer]:
    """The model, and what computes its rows."""
    model = tiny_encoder("bert", layers=4, dtype=torch.float32, classes=CLASSES, hidden=64)
    parts = encoder_parts(model.requires_grad_(False))
    fingerprint = teacher_fingerprint(parts, tokenizer="t")
    return model, RowComputer(parts, torch.device("cpu"), types=WireTypes(), fingerprint=fingerprint)


def build(
    config: RunConfig, device: torch.device, attempts: Attempts, *, member: int, attempt: int
) -> tuple[RowComputer, ShardGroup]:
    """In place of the run's teacher."""
    model, computer = teacher()
    if config.teacher.path == "refused" and member:
        raise UserError("teacher.path does not exist")
    another = config.teacher.path == "another" and member
    attempts.meet(
        attempt,
        member=member,
        size=SIZE,
        teacher="another" if another else computer.fingerprint,
        timeout_s=60,
    )
    timeout_s = config.teacher.deadline_s
    group = ShardGroup(
        attempts.group_store(attempt), member=member, size=SIZE, device=device, timeout_s=timeout_s
    )
    group.shard(model, list(layer_list(model)), offload=False)
    seen: list[torch.Tensor] = []
    model.register_forward_pre_hook(lambda _, __, named: seen.append(named["input_ids"]), with_kwargs=True)
    layer_list(model)[1].register_forward_hook(lambda *_: _harm(seen[-1], Path(config.run_dir)))
    return computer, group


def probe_rows(config: RunConfig) -> Request:
    """In place of the run's rows."""
    return harmless_rows((5, 9, 4))


def harmless_rows(lengths: tuple[int, ...]) -> Request:
    """Random rows of these lengths."""
    request = pack_request(ragged_batch(lengths, classes=CLASSES), labels=False)
    ids_BL = request.input_ids_BL
    return replace(request, input_ids_BL=torch.where(ids_BL >= DIES, ids_BL - 10, ids_BL))


def _harm(ids_BL: torch.Tensor, folder: Path) -> None:
    for token in {DIES, STOPS, NO_MEMORY, WRONG} & set(ids_BL.flatten().tolist()):
        done = folder / f"harm-{token}"
        if done.exists():
            continue
        done.touch()
        if token == NO_MEMORY:
            raise MemoryError("too many rows")
        if token == WRONG:
            raise ValueError("this row is wrong")
        os.kill(os.getpid(), signal.SIGKILL if token == DIES else signal.SIGSTOP)


if __name__ == "__main__":
    shard_worker.build_share = build
    shard_worker.probe_rows = probe_rows
    shard_worker.main()

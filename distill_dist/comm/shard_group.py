"""The workers of one sharded teacher: a process group of their own, which is their processes' default group."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import CPUOffloadPolicy, OffloadPolicy, fully_shard

LEADER = 0


class ShardGroup:
    """Collectives among the members, each with a deadline; torch's own errors go through.

    What the members say to each other travels over gloo; the model's weights over NCCL on CUDA, and over a gloo group
    apart on the CPU: a member that has failed in the model must not be mistaken for one that answers.
    """

    def __init__(
        self, store: dist.Store, *, member: int, size: int, device: torch.device, timeout_s: float
    ) -> None:
        """Meet the others at ``store``; ``timeout_s`` is the longest wait for one of them."""
        self.member, self.size, self._device = member, size, device
        timeout = timedelta(seconds=timeout_s)
        backend = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=store, rank=member, world_size=size, timeout=timeout)
        self._control = dist.new_group(backend="gloo", timeout=timeout)

    def announce(self, kind: int, content: bytes = b"") -> tuple[int, bytes]:
        """What the leader announces, on every member; the others' own arguments are not read.

        Returns when all have heard it, so that the leader notices one that hangs.
        """
        said = torch.tensor([kind, len(content)] if self.member == LEADER else [0, 0])
        dist.all_reduce(said, group=self._control)
        kind, size = said.tolist()
        if size:
            body = (
                torch.frombuffer(bytearray(content), dtype=torch.uint8)
                if self.member == LEADER
                else torch.empty(size, dtype=torch.uint8)
            )
            dist.broadcast(body, src=LEADER, group=self._control)
            content = body.numpy().tobytes()
        return kind, content if size else b""

    def gather(self, content: bytes) -> list[bytes]:
        """Every member's ``content``, in their order, on the leader; nothing on the others."""
        mine = torch.tensor([len(content)])
        found = [torch.empty_like(mine) for _ in range(self.size)]
        dist.all_gather(found, mine, group=self._control)
        if self.member != LEADER:
            dist.send(
                torch.frombuffer(bytearray(content), dtype=torch.uint8), dst=LEADER, group=self._control
            )
            return []
        contents = [content]
        for member in range(1, self.size):
            body = torch.empty(int(found[member]), dtype=torch.uint8)
            dist.recv(body, src=member, group=self._control)
            contents.append(body.numpy().tobytes())
        return contents

    def shard(self, model: nn.Module, units: Sequence[nn.Module], *, offload: bool) -> None:
        """Leave this member its share of every parameter of ``model``, in place.

        ``model`` is on the CPU; never more of it is on the device than all shares and one of ``units``, its layers, or
        what lies outside of them. ``offload`` keeps the shares in the host's memory.
        """
        group = dist.group.WORLD
        assert group is not None
        mesh = DeviceMesh.from_group(group, self._device.type)
        policy = CPUOffloadPolicy(pin_memory=self._device.type == "cuda") if offload else OffloadPolicy()
        for unit in (*units, model):
            # also the outermost one, which torch would leave whole after its forward
            options: dict[str, Any] = {"mesh": mesh, "offload_policy": policy, "reshard_after_forward": True}
            fully_shard(unit, **options)

"""What the ranks know of each other once they have met: hosts, processes, nodes, and rank 0's address."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import groupby

import torch.distributed as dist

from distill_dist.comm.environment import LaunchEnvironment, reachable_address


@dataclass(frozen=True)
class Member:
    """What a rank says of itself when it joins."""

    host: str
    pid: int
    node: int | None  # as in LaunchEnvironment
    master: str | None  # the launcher's address as seen from there; None: a loopback's
    mark: str  # of the run folder, by rank 0; empty: it could not be claimed


def join(store: dist.Store, launch: LaunchEnvironment, *, mark: str) -> None:
    """Say that this rank is there, and what it is."""
    here = Member(
        host=socket.gethostname(),
        pid=os.getpid(),
        node=launch.node,
        master=reachable_address(launch.master_address),
        mark=mark,
    )
    store.set(f"joined/{launch.rank}", json.dumps(asdict(here)))


def members(store: dist.Store, world_size: int) -> list[Member]:
    """All ranks, as they joined."""
    return [Member(**json.loads(store.get(f"joined/{rank}"))) for rank in range(world_size)]


def peers(store: dist.Store, world_size: int) -> dict[int, tuple[str, int]]:
    """Host name and process id of every rank, as it joined."""
    return {rank: (member.host, member.pid) for rank, member in enumerate(members(store, world_size))}


def as_all_see_it(known: Sequence[Member], launch: LaunchEnvironment) -> LaunchEnvironment:
    """``launch`` with what only the others can tell: how many ranks each node has, and rank 0's address.

    The name of a host often is 127.0.1.1 on itself (Debian), where nobody else reaches it; those on other hosts know
    its address.
    """
    nodes = [member.node for member in known]
    sizes = launch.node_sizes
    if not sizes and None not in nodes:
        sizes = tuple(len(list(ranks)) for _, ranks in groupby(nodes))
    address = launch.master_address
    if known[launch.rank].master is None:
        address = next((member.master for member in known if member.master is not None), address)
    return replace(launch, node_sizes=sizes, master_address=address)

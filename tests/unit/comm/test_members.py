"""What a rank learns from the others: nodes of unequal sizes, and the address of a host that calls itself 127.0.1.1."""

from __future__ import annotations

import os
import socket
from dataclasses import replace

import pytest
import torch.distributed as dist

from distill_dist.comm.environment import LaunchEnvironment
from distill_dist.comm.members import Member, as_all_see_it, join, members, peers

LAUNCH = LaunchEnvironment(1, 3, 0, 2, "node1", 29500, node=1)


def members_on(*nodes: int | None, masters: tuple[str | None, ...] = (None, None, None)) -> list[Member]:
    return [Member("host", 1, node, master, "") for node, master in zip(nodes, masters, strict=True)]


def test_what_is_said_is_known() -> None:
    store = dist.HashStore()
    join(store, replace(LAUNCH, rank=0, world_size=1, master_address="127.0.0.1"), mark="a mark")
    (found,) = members(store, 1)
    assert found == Member(socket.gethostname(), os.getpid(), 1, None, "a mark")
    assert peers(store, 1) == {0: (socket.gethostname(), os.getpid())}


@pytest.mark.parametrize(
    ("nodes", "sizes"),
    [((0, 1, 1), (1, 2)), ((0, 0, 1), (2, 1)), ((0, 1, 2), (1, 1, 1)), ((0, None, None), ())],
)
def test_unequal_nodes_are_counted(nodes: tuple[int | None, ...], sizes: tuple[int, ...]) -> None:
    """The launcher tells each rank its own node's size only."""
    assert as_all_see_it(members_on(*nodes), LAUNCH).node_sizes == sizes


def test_slurm_has_counted_already() -> None:
    known = replace(LAUNCH, node_sizes=(2, 1), node=None)
    assert as_all_see_it(members_on(None, None, None), known) == known


def test_who_finds_the_name_on_the_loopback_asks_the_others() -> None:
    seen = members_on(0, 1, 1, masters=(None, "10.0.0.1", "10.0.0.1"))
    assert as_all_see_it(seen, replace(LAUNCH, rank=0)).master_address == "10.0.0.1"
    # whoever reaches it by name goes on so: with two networks they may see two addresses
    assert as_all_see_it(seen, LAUNCH).master_address == "node1"


def test_on_one_host_the_loopback_is_right() -> None:
    assert as_all_see_it(members_on(0, 0, 0), LAUNCH).master_address == "node1"

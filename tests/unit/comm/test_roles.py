from __future__ import annotations

import re
from pathlib import Path

import pytest
from deepspeed.launcher.runner import fetch_hostfile

from distill_dist.comm.roles import Roles, assign_roles
from distill_dist.errors import UserError

PLACEMENTS = ("last", "per_node", "nodes")
WORLDS = [(size, local) for size in range(1, 13) for local in range(1, size + 1)]


def assigned(size: int, local: int, teachers: int, placement: str) -> Roles | None:
    try:
        return assign_roles(world_size=size, local_size=local, teachers=teachers, placement=placement)
    except UserError:
        return None


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_every_world_is_parted_or_refused(placement: str) -> None:
    done = 0
    for size, local in WORLDS:
        for teachers in range(size + 2):
            roles = assigned(size, local, teachers, placement)
            if roles is None:
                continue
            done += 1
            assert sorted((*roles.students, *roles.teachers)) == list(range(size))
            assert roles.students == tuple(sorted(roles.students))
            assert roles.teachers == tuple(sorted(roles.teachers))
            assert len(roles.teachers) == teachers
            assert roles.students[0] == 0
            assert roles.world_size == size
            assert [roles.is_teacher(rank) for rank in range(size)] == [
                r in roles.teachers for r in range(size)
            ]
    assert done > len(WORLDS)


def test_what_can_be_done_is_done() -> None:
    """Which (world, node, teachers) each placement accepts, said a second time."""
    for size, local in WORLDS:
        nodes, whole = size // local, size % local == 0
        for teachers in range(1, size + 2):
            fits = {
                "last": teachers < size,
                "per_node": whole and teachers % nodes == 0 and teachers < size,
                "nodes": whole and teachers % local == 0 and teachers < size,
            }
            for placement, possible in fits.items():
                done = assigned(size, local, teachers, placement) is not None
                assert done == possible, (size, local, teachers, placement)


@pytest.mark.parametrize(
    ("size", "local", "teachers", "placement", "expected"),
    [
        (4, 4, 0, "last", ()),
        (4, 4, 1, "last", (3,)),
        (8, 4, 3, "last", (5, 6, 7)),
        (8, 4, 2, "per_node", (3, 7)),
        (8, 4, 6, "per_node", (1, 2, 3, 5, 6, 7)),
        (6, 2, 2, "nodes", (4, 5)),
        (6, 2, 4, "nodes", (2, 3, 4, 5)),
        (3, 1, 2, "nodes", (1, 2)),
    ],
)
def test_known_worlds(
    size: int, local: int, teachers: int, placement: str, expected: tuple[int, ...]
) -> None:
    found = assign_roles(world_size=size, local_size=local, teachers=teachers, placement=placement)
    assert found.teachers == expected


@pytest.mark.parametrize(
    ("sizes", "teachers", "placement", "expected"),
    [
        ((4, 4, 1), 1, "nodes", (8,)),
        ((4, 4, 1), 5, "nodes", (4, 5, 6, 7, 8)),
        ((4, 2), 2, "per_node", (3, 5)),
        ((2, 3), 4, "last", (1, 2, 3, 4)),
        ((4, 4, 1), 4, "nodes", None),
        ((4, 4, 1), 3, "per_node", None),
        ((4, 4, 1), 9, "nodes", None),
    ],
)
def test_nodes_of_unequal_sizes(
    sizes: tuple[int, ...], teachers: int, placement: str, expected: tuple[int, ...] | None
) -> None:
    found = set()
    for local in set(sizes):  # every rank knows its own node's size, and all must agree
        try:
            roles = assign_roles(
                world_size=sum(sizes),
                local_size=local,
                teachers=teachers,
                placement=placement,
                node_sizes=sizes,
            )
        except UserError:
            found.add(None)
        else:
            found.add(roles.teachers)
    assert found == {expected}


@pytest.mark.parametrize(
    ("size", "local", "teachers", "placement", "message"),
    [
        (1, 1, 1, "last", r"cluster.teachers=1 leaves no student among the 1 processes.*start at least 2"),
        (4, 4, 7, "nodes", r"start at least 8"),
        (
            8,
            4,
            3,
            "per_node",
            r"cannot spread cluster.teachers=3 over 2 node\(s\) of 4 .*multiple of the nodes",
        ),
        (7, 4, 2, "per_node", r"cluster.placement=per_node cannot spread"),
        (
            8,
            4,
            2,
            "nodes",
            r"cannot make cluster.teachers=2 of whole nodes: there are 2 node\(s\) of 4 .*one of \[4\]",
        ),
    ],
)
def test_impossible_worlds_say_what_to_do(
    size: int, local: int, teachers: int, placement: str, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        assign_roles(world_size=size, local_size=local, teachers=teachers, placement=placement)


def test_consecutive_teachers_are_a_replica_whose_first_one_leads() -> None:
    roles = assign_roles(world_size=8, local_size=4, teachers=6, placement="per_node", shards=3)
    assert roles.teachers == (1, 2, 3, 5, 6, 7)
    assert roles.leaders == (1, 5)
    assert roles.followers == 4
    assert [roles.share(rank) for rank in roles.teachers] == [(1, 0), (1, 1), (1, 2), (5, 0), (5, 1), (5, 2)]
    whole = assign_roles(world_size=4, local_size=4, teachers=2, placement="last")
    assert whole.leaders == whole.teachers
    assert whole.followers == 0
    assert [whole.share(rank) for rank in whole.teachers] == [(2, 0), (3, 0)]


def test_the_example_of_a_hostfile_is_one() -> None:
    path = Path(__file__).parents[3] / "configs" / "hosts.txt"
    sizes = tuple(fetch_hostfile(str(path)).values())
    said = path.read_text(encoding="utf-8")
    (teachers,) = map(int, re.findall(r"cluster\.teachers=(\d+)", said))
    roles = assign_roles(
        world_size=sum(sizes), local_size=sizes[0], teachers=teachers, placement="nodes", node_sizes=sizes
    )
    assert roles.teachers == tuple(range(sum(sizes) - teachers, sum(sizes)))

"""Which ranks train and which teach: pure integers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from distill_dist.errors import UserError


@dataclass(frozen=True)
class Roles:
    """Global ranks by role, ascending. Rank 0 is always a student: it lives where the launcher's address is."""

    students: tuple[int, ...]
    teachers: tuple[int, ...]
    shards: int = 1  # teachers that hold one copy of the model together: a replica, of consecutive ones

    @property
    def world_size(self) -> int:
        """Launched processes of both roles."""
        return len(self.students) + len(self.teachers)

    def is_teacher(self, rank: int) -> bool:
        """Whether global ``rank`` teaches."""
        return rank in self.teachers

    @property
    def leaders(self) -> tuple[int, ...]:
        """The first teacher of every replica: it answers students."""
        return self.teachers[:: self.shards]

    @property
    def followers(self) -> int:
        """How many teachers lead no replica."""
        return len(self.teachers) - len(self.leaders)

    def share(self, teacher: int) -> tuple[int, int]:
        """(leader, number among its replica) of a teacher, by its global rank."""
        place = self.teachers.index(teacher)
        return self.teachers[place - place % self.shards], place % self.shards


def assign_roles(
    *,
    world_size: int,
    local_size: int,
    teachers: int,
    placement: str,
    shards: int = 1,
    node_sizes: Sequence[int] = (),
) -> Roles:
    """Roles of ``world_size`` ranks, ``local_size`` of them on each node, or ``node_sizes`` where those differ.

    ``placement``: ``last`` takes the last ranks, ``per_node`` the last ones of every node, ``nodes`` whole
    nodes at the end. ``shards`` divides ``teachers``. Raises UserError where that cannot be done.
    """
    if teachers == 0:
        return Roles(tuple(range(world_size)), ())
    if teachers >= world_size:
        raise UserError(
            f"cluster.teachers={teachers} leaves no student among the {world_size} processes that were started; "
            f"start at least {teachers + 1} (deepspeed --num_gpus {teachers + 1} …) or set cluster.teachers=0"
        )
    even = (local_size,) * (world_size // local_size) if world_size % local_size == 0 else ()
    sizes = tuple(node_sizes) or even
    if placement == "last":
        teaching = set(range(world_size - teachers, world_size))
    elif placement == "per_node":
        teaching = _per_node(sizes, teachers)
    else:
        teaching = _whole_nodes(sizes, teachers)
    students = tuple(rank for rank in range(world_size) if rank not in teaching)
    return Roles(students, tuple(sorted(teaching)), shards)


def _per_node(sizes: tuple[int, ...], teachers: int) -> set[int]:
    nodes = len(sizes)
    if not nodes or teachers % nodes or teachers // nodes >= min(sizes):
        raise UserError(
            f"cluster.placement=per_node cannot spread cluster.teachers={teachers} over {_words(sizes)}; take a "
            "multiple of the nodes that leaves a student on each, or placement=last"
        )
    share = teachers // nodes
    ends = list(accumulate(sizes))
    return {rank for end in ends for rank in range(end - share, end)}


def _whole_nodes(sizes: tuple[int, ...], teachers: int) -> set[int]:
    wholes = list(accumulate(reversed(sizes)))
    if teachers not in wholes:
        raise UserError(
            f"cluster.placement=nodes cannot make cluster.teachers={teachers} of whole nodes: there are "
            f"{_words(sizes)}; take one of {wholes[:-1]}, or placement=last"
        )
    return set(range(sum(sizes) - teachers, sum(sizes)))


def _words(sizes: tuple[int, ...]) -> str:
    if not sizes:
        return "nodes with unequal numbers of processes"
    if len(set(sizes)) == 1:
        return f"{len(sizes)} node(s) of {sizes[0]} process(es)"
    return f"nodes of {', '.join(map(str, sizes))} processes"

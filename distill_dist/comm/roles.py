"""Which ranks train and which teach: pure integers."""

from __future__ import annotations

from dataclasses import dataclass

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
    *, world_size: int, local_size: int, teachers: int, placement: str, shards: int = 1
) -> Roles:
    """Roles of ``world_size`` ranks, ``local_size`` of them on each node.

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
    if placement == "last":
        teaching = set(range(world_size - teachers, world_size))
    elif placement == "per_node":
        teaching = _per_node(world_size, local_size, teachers)
    else:
        teaching = _whole_nodes(world_size, local_size, teachers)
    students = tuple(rank for rank in range(world_size) if rank not in teaching)
    return Roles(students, tuple(sorted(teaching)), shards)


def _per_node(world_size: int, local_size: int, teachers: int) -> set[int]:
    nodes = -(-world_size // local_size)
    if world_size % local_size or teachers % nodes or teachers // nodes >= local_size:
        raise UserError(
            f"cluster.placement=per_node cannot spread cluster.teachers={teachers} over {nodes} nodes of "
            f"{local_size} processes; take a multiple of {nodes} below {nodes * local_size}, or placement=last"
        )
    share = teachers // nodes
    return {
        node * local_size + place for node in range(nodes) for place in range(local_size - share, local_size)
    }


def _whole_nodes(world_size: int, local_size: int, teachers: int) -> set[int]:
    if world_size % local_size or teachers % local_size:
        raise UserError(
            f"cluster.placement=nodes needs cluster.teachers to be a multiple of the {local_size} processes of a "
            f"node, not {teachers}"
        )
    return set(range(world_size - teachers, world_size))

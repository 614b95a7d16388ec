"""Which rank does what on which node of a job, before there is a job."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, product

from distill_dist.comm.roles import Roles, assign_roles
from distill_dist.config.schema import RunConfig
from distill_dist.errors import UserError
from distill_dist.slurm.script import Part


@dataclass(frozen=True)
class Seat:
    """One rank. Nodes count from 1; ``gpu`` None: it computes on the CPU."""

    rank: int
    teaches: bool
    node: int
    gpu: int | None


def place(config: RunConfig, parts: Sequence[Part]) -> list[Seat]:
    """Every rank of the job at its largest. Raises UserError where any of its sizes cannot work."""
    _check_gpus(config, parts)
    seats: list[Seat] = []
    for counts in product(*(part.nodes for part in parts)):
        sizes = [part.tasks for part, count in zip(parts, counts, strict=True) for _ in range(count)]
        gpus = [part.gpus for part, count in zip(parts, counts, strict=True) for _ in range(count)]
        seats = list(_seats(config, _roles(config, sizes), sizes, gpus))
    return seats


def _roles(config: RunConfig, sizes: list[int]) -> Roles:
    return assign_roles(
        world_size=sum(sizes),
        local_size=sizes[0],
        teachers=config.cluster.teachers,
        placement=config.cluster.placement,
        shards=config.teacher.shards,
        node_sizes=sizes,
    )


def _seats(config: RunConfig, roles: Roles, sizes: list[int], gpus: list[int]) -> Iterator[Seat]:
    rank = 0
    for node, (size, devices) in enumerate(zip(sizes, gpus, strict=True)):
        for local in range(size):
            gpu = local if devices and config.cluster.device != "cpu" else None
            yield Seat(rank, roles.is_teacher(rank), node + 1, gpu)
            rank += 1


def _check_gpus(config: RunConfig, parts: Sequence[Part]) -> None:
    device = config.cluster.device
    if device == "cpu":
        return
    for number, part in enumerate(parts):
        which = f" of part {number + 1}" if len(parts) > 1 else ""
        if part.gpus == 0 and (device == "cuda" or any(other.gpus for other in parts)):
            raise UserError(
                f"cluster.device={device}, but the nodes{which} have no GPU: ask for some (--gpus-per-node), or set "
                "cluster.device=cpu"
            )
        if 0 < part.gpus < part.tasks:
            raise UserError(
                f"the nodes{which} have {part.tasks} processes and {part.gpus} GPUs: one GPU a process "
                "(--ntasks-per-node, --gpus-per-node)"
            )


def describe(seats: Sequence[Seat]) -> str:
    """One line per node and role: `ranks 0-3  student  node 1  gpu 0-3`."""
    lines = []
    for (node, teaches), group in groupby(seats, key=lambda seat: (seat.node, seat.teaches)):
        members = list(group)
        device = (
            "cpu" if members[0].gpu is None else f"gpu {_span([s.gpu for s in members if s.gpu is not None])}"
        )
        role = "teacher" if teaches else "student"
        lines.append(f"ranks {_span([seat.rank for seat in members]):<9} {role}  node {node:<4} {device}")
    return "\n".join(lines)


def _span(numbers: list[int]) -> str:
    return f"{numbers[0]}" if len(numbers) == 1 else f"{numbers[0]}-{numbers[-1]}"

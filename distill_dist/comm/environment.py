"""What the launcher told this process: rank, world and address, from the environment."""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass

import psutil

from distill_dist.errors import UserError

_REMEDY = "start with deepspeed, torchrun or srun (as slurm/gkd_mnli.sh does)"


@dataclass(frozen=True)
class LaunchEnvironment:
    """One launched process's place.

    ``agent_store``: torchrun already serves a store at the address, which outlives ``attempt`` 0, 1, …
    """

    rank: int
    world_size: int
    local_rank: int
    local_size: int
    master_address: str
    master_port: int  # 0: nobody launched us, any free port will do
    agent_store: bool = False
    attempt: int = 0
    node_sizes: tuple[
        int, ...
    ] = ()  # processes of each node, in the order of ranks; empty: ``local_size`` on all
    node: int | None = None  # number of its node; None: the launcher does not say


def read_environment(environment: MutableMapping[str, str]) -> LaunchEnvironment:
    """The process's place; without a launcher a world of one. Raises UserError on a half-set environment."""
    if "RANK" not in environment and "WORLD_SIZE" not in environment:
        if is_slurm_task(environment):
            return _read_slurm(environment)
        return LaunchEnvironment(0, 1, 0, 1, "127.0.0.1", 0)
    _require(environment, "RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    rank, world_size = _number(environment, "RANK"), _number(environment, "WORLD_SIZE")
    if rank >= world_size:
        raise UserError(f"the environment has RANK={rank} in a world of WORLD_SIZE={world_size}; {_REMEDY}")
    local_size = "LOCAL_WORLD_SIZE" if environment.get("LOCAL_WORLD_SIZE") else "LOCAL_SIZE"
    return LaunchEnvironment(
        rank=rank,
        world_size=world_size,
        local_rank=_number(environment, "LOCAL_RANK", default=0),
        local_size=max(1, _number(environment, local_size, default=world_size)),
        master_address=environment["MASTER_ADDR"],
        master_port=_port(environment),
        agent_store=environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True",
        attempt=_number(environment, "TORCHELASTIC_RESTART_COUNT"),
        node=_node(environment),
    )


def _node(environment: Mapping[str, str]) -> int | None:
    """DeepSpeed's launcher and torchrun each have a name for it."""
    for name in ("CROSS_RANK", "GROUP_RANK"):
        if environment.get(name):
            return _number(environment, name)
    return None


def is_slurm_task(environment: Mapping[str, str]) -> bool:
    """Whether srun started this process; a batch script's own processes have no step."""
    return "SLURM_STEP_ID" in environment and environment.get("SLURM_STEP_NUM_TASKS", "1") != "1"


def _read_slurm(environment: Mapping[str, str]) -> LaunchEnvironment:
    """One task of a step; the step's numbers also span the parts of a heterogeneous job (Slurm 22.05)."""
    _require(
        environment,
        "SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID", "SLURM_STEP_TASKS_PER_NODE", "MASTER_ADDR", "MASTER_PORT",
    )  # fmt: skip
    sizes = parse_tasks_per_node(environment["SLURM_STEP_TASKS_PER_NODE"])
    node = _number(environment, "SLURM_NODEID")
    if node >= len(sizes):
        raise UserError(f"the environment has SLURM_NODEID={node} among {len(sizes)} nodes; {_REMEDY}")
    return LaunchEnvironment(
        rank=_number(environment, "SLURM_PROCID"),
        world_size=_number(environment, "SLURM_STEP_NUM_TASKS"),
        local_rank=_number(environment, "SLURM_LOCALID"),
        local_size=sizes[node],
        master_address=environment["MASTER_ADDR"],
        master_port=_port(environment),
        node_sizes=sizes,
    )


def parse_tasks_per_node(text: str) -> tuple[int, ...]:
    """`4(x2),1`, as Slurm writes it, is (4, 4, 1). Raises UserError."""
    sizes: list[int] = []
    for part in text.split(","):
        found = re.fullmatch(r"([0-9]{1,6})(?:\(x([0-9]{1,6})\))?", part)
        if found is None:
            raise UserError(f"the environment has SLURM_STEP_TASKS_PER_NODE={text!r}, unlike `4(x2),1`")
        sizes += [int(found[1])] * int(found[2] or 1)
    return tuple(sizes)


def read_job_end(environment: Mapping[str, str]) -> int | None:
    """When Slurm ends this job at the latest, in seconds since 1970; None where nobody says. Raises UserError.

    slurm/*.sh set it; Slurm itself does from 23.02 on.
    """
    if not environment.get("SLURM_JOB_END_TIME"):
        return None
    return _number(environment, "SLURM_JOB_END_TIME", digits=12)


def _require(environment: Mapping[str, str], *names: str) -> None:
    missing = [name for name in names if not environment.get(name)]
    if missing:
        raise UserError(f"the environment lacks {', '.join(missing)}; {_REMEDY}")


def _port(environment: Mapping[str, str]) -> int:
    port = _number(environment, "MASTER_PORT")
    if not 0 < port < 65536:
        raise UserError(f"the environment has MASTER_PORT={port}, which is no port (1 to 65535); {_REMEDY}")
    return port


def _number(environment: Mapping[str, str], name: str, *, default: int = 0, digits: int = 9) -> int:
    """The variable as a number from 0 of at most so many ``digits``; ``default`` where it is absent or empty."""
    text = environment.get(name) or str(default)
    if not (text.isascii() and text.isdigit() and len(text) <= digits):
        raise UserError(f"the environment has {name}={text!r}, which is no whole number; {_REMEDY}")
    return int(text)


def prepare_environment(
    environment: MutableMapping[str, str], launch: LaunchEnvironment, *, student_rank: int, students: int
) -> None:
    """Leave in the environment only what is true for the group of students; pin the network interface.

    LOCAL_SIZE goes: with it DeepSpeed's CPU all-reduce leaves 66 MB a rank in /dev/shm. The agent-store flag
    goes: with it any further rendezvous of ours would hang.
    """
    for name in ("LOCAL_SIZE", "TORCHELASTIC_USE_AGENT_STORE"):
        environment.pop(name, None)
    environment.update(
        RANK=str(student_rank),
        WORLD_SIZE=str(students),
        LOCAL_RANK=str(launch.local_rank),
        MASTER_ADDR=launch.master_address,
        MASTER_PORT=str(launch.master_port),
    )
    pin_interface(environment, launch.master_address)


def pin_interface(environment: MutableMapping[str, str], address: str) -> None:
    """Let gloo, NCCL and RPC talk over the interface that routes to ``address``, unless the user chose one.

    They otherwise take what the host's own name resolves to, which may be 127.0.1.1.
    """
    interface = route_interface(address)
    if interface is not None:
        for name in ("GLOO_SOCKET_IFNAME", "TP_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
            environment.setdefault(name, interface)


def reachable_address(name: str) -> str | None:
    """The first address of ``name`` that other hosts could reach too; None: it has none here but the loopback's."""
    try:
        found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    except OSError:
        return None
    addresses = [str(place[0]) for *_, place in found]
    return next(
        (text for text in addresses if not ipaddress.ip_address(text.split("%")[0]).is_loopback), None
    )


def route_interface(address: str) -> str | None:
    """Name of the network interface that routes to ``address``; None where it cannot be told."""
    try:
        family, _, _, _, target = socket.getaddrinfo(address, 9, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect(target)  # no packet is sent: the kernel only picks a route
            own = probe.getsockname()[0]
    except OSError:
        return None
    for name, addresses in psutil.net_if_addrs().items():
        if any(entry.address == own for entry in addresses):
            return name
    return None

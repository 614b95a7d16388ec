"""What the ranks of test_comm.py do. Imported by children only: no pytest in here."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import rpc
from torch.futures import Future

from distill_dist.comm.environment import LaunchEnvironment, read_environment
from distill_dist.comm.members import peers
from distill_dist.comm.rendezvous import Store, await_ready, connect_store, reach_store, report_failure
from distill_dist.comm.rpc_world import CallFailed, RpcWorld, answered_later
from distill_dist.comm.students import PeerLost, StudentGroup
from distill_dist.errors import UserError

RENDEZVOUS_S = 60.0


def _meet() -> tuple[LaunchEnvironment, Store]:
    launch = read_environment(os.environ)
    return launch, connect_store(launch, timeout_s=RENDEZVOUS_S)


def _group(launch: LaunchEnvironment, store: Store, *, timeout_s: float) -> StudentGroup:
    return StudentGroup(
        store,
        rank=launch.rank,
        global_ranks=tuple(range(launch.world_size)),
        peers=peers(store, launch.world_size),
        backend="gloo",
        timeout_s=timeout_s,
    )


def collectives(victim: int) -> dict[str, Any]:
    """Agreements and sums; then ``victim`` kills itself and the others notice."""
    launch, store = _meet()
    await_ready(store, launch, timeout_s=RENDEZVOUS_S)
    group = _group(launch, store, timeout_s=60)
    found: dict[str, Any] = {
        "agreed": [group.agree(launch.rank), group.agree(-launch.rank), group.agree(7)],
        "heard": [
            group.hear(text if launch.rank >= first else None)
            for first, text in ((0, f"rank {launch.rank}"), (1, "größer"), (group.size - 1, ""))
        ],
        "sum": group.sum_(torch.tensor([float(launch.rank), 1.0], dtype=torch.float64)).tolist(),
        "pids": {str(rank): pid for rank, (_, pid) in peers(store, launch.world_size).items()},
        "pid": os.getpid(),
    }
    if launch.rank == victim:
        os.kill(os.getpid(), signal.SIGKILL)
    start = time.monotonic()
    # twice: the first may still go through where the victim's words were already sent
    for collective in (lambda: group.agree(0), lambda: group.sum_(torch.ones(1))):
        try:
            collective()
        except PeerLost as error:
            found["lost"] = str(error)
            break
    found["seconds"] = time.monotonic() - start
    # Nobody leaves before the other survivor has looked, which may rightly find it dead as well.
    _await_all(store, "noticed", launch.world_size - 1)
    if launch.rank:
        store.add("left", 1)
    else:
        _await_all(store, "left", launch.world_size - 1)
    return found


def _await_all(store: Store, key: str, number: int) -> None:
    """Count itself, and return when ``number`` have; the store goes with rank 0."""
    deadline = time.monotonic() + RENDEZVOUS_S
    counted = store.add(key, 1)
    while counted < number and time.monotonic() < deadline:
        time.sleep(0.05)
        counted = store.add(key, 0)


def hung_sibling(timeout_s: float) -> dict[str, Any]:
    """Rank 1 is stopped, rank 2 comes to no collective either, but lives; rank 0 gives up after ``timeout_s``."""
    launch, store = _meet()
    group = _group(launch, store, timeout_s=timeout_s)
    deepspeeds = dist.new_group()  # which gives it no limit
    group.agree(0)
    start = time.monotonic()
    if launch.rank:
        store.wait(["given up"])
        store.add("left", 1)
        return {}
    stopped = peers(store, launch.world_size)[1][1]
    os.kill(stopped, signal.SIGSTOP)
    try:
        with group.naming_the_lost():
            dist.all_reduce(torch.zeros(1), group=deepspeeds)
    except PeerLost as error:
        found = {"lost": str(error), "seconds": time.monotonic() - start, "stopped": stopped}
    os.kill(stopped, signal.SIGCONT)
    store.set("given up", "")
    _await_all(store, "left", launch.world_size)
    return found


def echo(value: int) -> int:
    """Remote."""
    return value + 1


def refuse() -> None:
    """Remote: raises."""
    raise ValueError("seven is not a colour")


@answered_later
def refuse_later() -> Future[int]:
    """Remote: the answer that comes is an error, as a teacher's that cannot compute."""
    answer: Future[int] = Future()
    answer.set_exception(RuntimeError("out of memory"))  # type: ignore[arg-type]
    return answer


def sleep(seconds: float) -> None:
    """Remote: does not answer for a while."""
    time.sleep(seconds)


def die() -> None:
    """Remote: kills the process that answers."""
    os.kill(os.getpid(), signal.SIGKILL)


def _world(
    store: Store, name: str, students: tuple[str, ...], hosts: tuple[str, ...], *, replaces: bool = False
) -> RpcWorld:
    return RpcWorld(
        store,
        name=name,
        students=students,
        hosts=hosts,
        address="127.0.0.1",
        timeout_s=RENDEZVOUS_S,
        replaces=replaces,
    )


def calls() -> dict[str, Any]:
    """Rank 0 calls ranks 1 and 2; 1 hangs, then 2 dies."""
    launch, store = _meet()
    name = ("student0", "teacher1", "teacher2")[launch.rank]
    world = _world(store, name, ("student0",), ("teacher1", "teacher2"))
    if launch.rank != 0:
        store.wait(["done"])
        world.leave()
        return {}
    found: dict[str, Any] = {
        "echo": [world.call("teacher1", echo, 1).wait(30), world.call("teacher2", echo, 2).wait(30)]
    }
    for name, peer, function, arguments, wait_s in (
        ("raised", "teacher1", refuse, (), 30.0),
        ("raised later", "teacher1", refuse_later, (), 30.0),
        ("hung", "teacher1", sleep, (3.0,), 0.5),
        ("died", "teacher2", die, (), 30.0),
        ("dead", "teacher2", echo, (3,), 30.0),
    ):
        start = time.monotonic()
        try:
            world.call(peer, function, *arguments).wait(wait_s)
            message = None
        except CallFailed as error:
            message = str(error)
        found[name] = {"message": message, "seconds": time.monotonic() - start}
    found["the other one still answers"] = world.call("teacher1", echo, 4).wait(30)
    store.set("done", "1")
    time.sleep(1)  # the store lives here
    world.leave()
    return found


def rendezvous(timeout_s: float) -> dict[str, Any]:
    """Wait for everybody; somebody is absent."""
    launch = read_environment(os.environ)
    start = time.monotonic()
    try:
        connect_store(launch, timeout_s=timeout_s)
    except UserError as error:
        return {"message": str(error), "seconds": time.monotonic() - start}
    return {}


def loading(failing: list[int], late_s: float) -> dict[str, Any]:
    """The ranks in ``failing`` cannot load, which rank 2 takes ``late_s`` to do; everybody hears of it."""
    launch, store = _meet()
    store.add("met", 1)
    while launch.rank == 0 and store.add("met", 0) < launch.world_size:
        time.sleep(0.01)  # or it takes the store away from one that still joins
    start = time.monotonic()
    try:
        time.sleep(late_s if launch.rank == 2 else 0)
        if launch.rank in failing:
            error = UserError(f"teacher.path of rank {launch.rank} does not exist")
            report_failure(store, launch, error)
            raise error
        await_ready(store, launch, timeout_s=60)
    except UserError as error:
        return {"message": str(error), "said": error.said, "seconds": time.monotonic() - start}
    return {}


STUDENTS, HOSTS = ("student0", "student1"), ("teacher2", "teacher3")


def dying_process() -> None:
    """teacher3, which dies between its coming and its entering, where the others wait for it."""
    rpc.init_rpc = lambda *_, **__: die()
    host_process(replaces=False)


def host_lost_on_the_way_in() -> dict[str, Any]:
    """teacher3 dies while the first world is formed, and is replaced."""
    launch, store = _meet()
    if launch.rank == 3:
        call = "from multi.comm_worker import dying_process; dying_process()"
        first = subprocess.run([sys.executable, "-c", call], check=False)
        return {"first": first.returncode, "ended": _start_host(replaces=True).wait()}
    start = time.monotonic()
    world = _world(store, f"{'student' if launch.rank < 2 else 'teacher'}{launch.rank}", STUDENTS, HOSTS)
    found = {"seconds": time.monotonic() - start, "hosts": world.hosts}
    if launch.rank == 0:
        found["echo"] = [world.call(name, echo, 1).wait(30) for name in HOSTS]
        store.set("done", "")
        time.sleep(1)  # the store lives here
    else:
        store.wait(["done"])
    world.leave()
    return found


def host_process(replaces: bool) -> None:
    """teacher3, in a process that its rank can kill and replace."""
    launch = read_environment(os.environ)
    store = reach_store(launch, timeout_s=RENDEZVOUS_S, run="")
    world = _world(store, "teacher3", STUDENTS, HOSTS, replaces=replaces)
    store.wait(["done"])
    world.leave()


def _start_host(*, replaces: bool) -> subprocess.Popen[bytes]:
    call = f"from multi.comm_worker import host_process; host_process({replaces})"
    return subprocess.Popen([sys.executable, "-c", call])


def replaced_host(times: int) -> dict[str, Any]:
    """teacher3 is killed and replaced ``times`` times, while student 1 waits in a collective for student 0."""
    launch, store = _meet()
    if launch.rank == 3:
        for number in range(times + 1):
            process = _start_host(replaces=number > 0)
            store.wait([f"answered {number}"])
            if number < times:
                process.kill()
                process.wait()
        return {"ended": process.wait()}
    world = _world(store, f"{'student' if launch.rank < 2 else 'teacher'}{launch.rank}", STUDENTS, HOSTS)
    if launch.rank == 2:
        store.wait(["done"])
        world.leave()
        return {"generation": world.generation}
    group = StudentGroup(
        store, rank=launch.rank, global_ranks=(0, 1), peers=peers(store, 4), backend="gloo", timeout_s=60
    )
    found = _students_calls(world, store, times) if launch.rank == 0 else {}
    group.agree(0)  # where student 1 is all the time
    if launch.rank == 1:
        found["echo"] = [world.call(name, echo, 1).wait(30) for name in HOSTS]
    group.agree(0)
    if launch.rank == 0:
        store.set("done", "")
        time.sleep(1)  # the store lives here
    world.leave()
    return {**found, "generation": world.generation}


def _students_calls(world: RpcWorld, store: Store, times: int) -> dict[str, Any]:
    found: dict[str, Any] = {"echo": [], "hosts": [], "errors": []}
    for number in range(times + 1):
        generation = world.generation
        found["echo"].append([world.call(name, echo, number).wait(30) for name in HOSTS])
        pending = world.call("teacher3", sleep, 20.0)
        store.set(f"answered {number}", "")
        if number == times:
            break
        try:
            pending.wait(30)
        except CallFailed as error:
            found["errors"].append(type(error).__name__)
        assert world.await_standing(generation, 60)
        found["hosts"].append(world.hosts)
    return found

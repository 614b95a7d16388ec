"""The processes of a teacher service on this machine: hosts and students of one RPC world, with deadlines."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from distill_dist.bench.measured_process import OF_LAUNCHERS, ROOT
from distill_dist.children import start_child
from distill_dist.comm.environment import LaunchEnvironment
from distill_dist.comm.rendezvous import Store, connect_store, free_port, reach_store
from distill_dist.comm.rpc_world import RpcWorld

ADDRESS = "127.0.0.1"
# Longest wait for processes that import and load (three dozen on two cores), and for them to end.
START_S, END_S = 300.0, 60.0
RELEASE_S = 5.0  # for a host to hear that its student leaves


@dataclass(frozen=True)
class Membership:
    """One process's place in a world; it travels as JSON."""

    name: str
    students: list[str]
    hosts: list[str]
    run: str  # scope of the rendezvous keys
    port: int  # of the store, which the benchmark itself keeps
    folder: str  # of the stored cases
    result: str = ""  # file for what the process found

    def reach(self) -> Store:
        """The store."""
        place = LaunchEnvironment(1, 2, 0, 1, ADDRESS, self.port)  # any rank but the one that keeps it
        return reach_store(place, timeout_s=START_S, run=self.run)

    def join(self, store: Store) -> RpcWorld:
        """Enter the RPC world with all the others. Raises TimeoutError."""
        return RpcWorld(
            store,
            name=self.name,
            students=tuple(self.students),
            hosts=tuple(self.hosts),
            address=ADDRESS,
            timeout_s=START_S,
        )


def meet(store: Store, name: str, size: int, *, timeout_s: float) -> None:
    """Return once ``size`` members have come to the meeting ``name``. Raises TimeoutError."""
    store.add(f"meet/{name}", 1)
    deadline = time.monotonic() + timeout_s
    while (here := store.add(f"meet/{name}", 0)) < size:
        if time.monotonic() > deadline:
            raise TimeoutError(f"{size - here} of {size} did not come to {name} within {timeout_s:.0f} s")
        time.sleep(0.1)


class Processes:
    """What runs beside the benchmark: its results, or why there are none."""

    def __init__(self, scratch: Path, run: str, *, num_students: int, num_hosts: int, cases: Path) -> None:
        """Opens the store of a world of that many; ``scratch`` takes logs and results."""
        self._scratch, self._running = scratch, dict[str, subprocess.Popen[bytes]]()
        port = free_port(ADDRESS)
        self.store = connect_store(LaunchEnvironment(0, 1, 0, 1, ADDRESS, port), timeout_s=START_S, run=run)
        self.member = Membership(
            name="",
            students=[f"{run}-student{number}" for number in range(num_students)],
            hosts=[f"{run}-teacher{number}" for number in range(num_hosts)],
            run=run,
            port=port,
            folder=str(cases),
        )

    def as_member(self, name: str) -> Membership:
        """The place of the member ``name``."""
        return replace(self.member, name=name, result=str(self._scratch / f"{name}.json"))

    def start(self, module: str, name: str, **job: Any) -> None:
        """``module`` as member ``name``, with a log of its own."""
        environment = {key: value for key, value in os.environ.items() if key not in OF_LAUNCHERS}
        with (self._scratch / f"{name}.log").open("wb") as log:
            self._running[name] = start_child(
                module,
                asdict(self.as_member(name)) | job,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            )

    def await_hosts(self) -> None:
        """Start all hosts, and return once they have loaded. RuntimeError where one does not."""
        for name in self.member.hosts:
            self.start("distill_dist.bench.teacher_host", name)
        deadline = time.monotonic() + START_S
        while not self.store.check([f"loaded/{name}" for name in self.member.hosts]):
            self.check()
            if time.monotonic() > deadline:
                raise RuntimeError(f"hosts did not load within {START_S:.0f} s\n{self._logs()}")
            time.sleep(0.05)

    def check(self) -> None:
        """RuntimeError where a process has failed, with its log."""
        for name, process in self._running.items():
            if process.poll():
                raise RuntimeError(f"{name} ended with {process.returncode}\n{self._logs(name)}")

    def results(self, timeout_s: float) -> dict[str, dict[str, Any]]:
        """What every process wrote, once all have ended well. RuntimeError where one does not in time."""
        deadline = time.monotonic() + timeout_s
        while any(process.poll() is None for process in self._running.values()):
            self.check()
            if time.monotonic() > deadline:
                late = [name for name, process in self._running.items() if process.poll() is None]
                raise RuntimeError(
                    f"after {timeout_s:.0f} s {', '.join(late)} still ran\n{self._logs(late[0])}"
                )
            time.sleep(0.05)
        self.check()
        return {
            name: json.loads((self._scratch / f"{name}.json").read_text(encoding="utf-8"))
            for name in self._running
        }

    def kill(self) -> None:
        """End what still runs; workers end with their hosts."""
        for process in self._running.values():
            process.kill()
        for process in self._running.values():
            process.wait()

    def _logs(self, *names: str) -> str:
        files = [self._scratch / f"{name}.log" for name in names or self._running]
        return "\n".join(file.read_text(encoding="utf-8", errors="replace")[-4000:] for file in files)


@contextlib.contextmanager
def processes(
    scratch: Path, run: str, *, num_students: int, num_hosts: int, cases: Path
) -> Iterator[Processes]:
    """Loaded hosts of a world, which ends with the block."""
    found = Processes(scratch, run, num_students=num_students, num_hosts=num_hosts, cases=cases)
    try:
        found.await_hosts()
        yield found
    finally:
        found.kill()

"""Runs of the tests over several hosts: started as their users would, by DeepSpeed's launcher or by torchrun."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
from e2e.conftest import TRACED, shared_memory
from tiny import RUN_LIMIT_S, Started, World, environment, free_port, running, start, trace, wait_until

from cluster.hosts import DEEPSPEED, TORCHRUN, Hosts
from distill_dist.config.load import dump_config, load_config

# Two students, one each, and the teacher beside the second: their collectives and its answers cross the cable.
APART = {"h1": 1, "h2": 2}
# Both students on the first host, the teacher on the other.
TEACHER_AWAY = {"h1": 2, "h2": 1}


@dataclass(frozen=True)
class Job:
    """One run that is under way, or was."""

    hosts: Hosts
    run_dir: Path
    started: Started

    def await_step(self, step: int) -> None:
        """Return when student 0 has committed ``step`` steps."""
        wait_until(
            lambda: len(trace(self.run_dir)) >= step or not self.started.alive(),
            what=f"step {step} of {self.run_dir}",
            timeout_s=RUN_LIMIT_S,
        )
        assert self.started.alive(), self.text()

    def await_end(self, timeout_s: float = RUN_LIMIT_S) -> list[int]:
        """Exit codes of the launchers, once nothing of the run is left on any host. AssertionError with all logs."""
        deadline = time.monotonic() + timeout_s
        while (left := self.left()) and time.monotonic() < deadline:
            time.sleep(0.2)
        assert not left, f"{left} still run after {timeout_s:.0f} s\n{self.text()}"
        return self.started.wait()

    def left(self) -> list[tuple[str, list[str]]]:
        """(host, command) of what runs."""
        found = []
        for host in self.hosts.names:
            for process in self.hosts.processes(host):
                with contextlib.suppress(psutil.NoSuchProcess):  # it may end while it is looked at
                    found.append((host, process.cmdline()))
        return found

    def log(self, rank: int) -> str:
        """What that rank logged."""
        return (self.run_dir / "logs" / f"rank-{rank:05d}.log").read_text(encoding="utf-8")

    def text(self) -> str:
        """What launchers and ranks said."""
        logs = sorted((self.run_dir / "logs").glob("*.log"))
        return "\n".join(
            [self.started.text(), *(f"--- {path}\n{path.read_text('utf-8')[-3000:]}" for path in logs)]
        )


def write_config(world: World, run_dir: Path, *more: str) -> Path:
    """The reference's run, in another folder. A file: pdsh hands arguments to a shell, which reads `$` and braces."""
    run_dir.parent.mkdir(parents=True, exist_ok=True)
    path = run_dir.parent / "run.yaml"
    config = load_config(None, world.student(run_dir, "method=gkd_cls", *TRACED, *more))
    path.write_text(dump_config(config), encoding="utf-8")
    return path


@contextmanager
def deepspeed(
    hosts: Hosts, config: Path, slots: dict[str, int], *arguments: str, options: tuple[str, ...] = ()
) -> Iterator[Job]:
    """`deepspeed --hostfile` on the first host; ``options`` are the launcher's. Nothing is left at the end."""
    hostfile = config.parent / "hosts.txt"
    hostfile.write_text("".join(f"{host} slots={number}\n" for host, number in slots.items()), "utf-8")
    command = hosts.command(
        "h1", str(DEEPSPEED), "--hostfile", str(hostfile), "--master_port", str(free_port()), *options,
        "launcher/train.py", "--config", str(config), *arguments,
    )  # fmt: skip
    with _under_way(hosts, config, [command]) as job:
        yield job


@contextmanager
def torchrun(hosts: Hosts, config: Path, slots: dict[str, int], *arguments: str) -> Iterator[Job]:
    """`torchrun` on every host, which meet at the first one's name. Nothing is left at the end."""
    place = f"h1:{free_port()}"
    commands = [
        hosts.command(
            host, str(TORCHRUN), "--nnodes", str(len(slots)), "--nproc_per_node", str(number),
            "--rdzv_backend", "c10d", "--rdzv_endpoint", place, "--rdzv_id", "run",
            "launcher/train.py", "--config", str(config), *arguments,
        )
        for host, number in slots.items()
    ]  # fmt: skip
    with _under_way(hosts, config, commands) as job:
        yield job


@contextmanager
def _under_way(hosts: Hosts, config: Path, commands: list[list[str]]) -> Iterator[Job]:
    before = shared_memory()
    logs = config.parent / f"logs-{time.monotonic_ns()}"
    started = start(commands, [environment()] * len(commands), logs=logs, port=0)
    try:
        with running(started):
            yield Job(hosts, config.parent / "run", started)
    finally:
        hosts.clear()
    assert shared_memory() <= before

"""A real Slurm on this machine: munged, slurmctld and one slurmd per node, all in one folder, none left behind.

Nodes share the host and its address; each has a slurmd of its own, so that one can die. The daemons run in the
foreground as children of the tests, with their own configuration, socket and ports: a Slurm that the machine has
already is neither used nor disturbed.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import socket
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from tiny import environment, free_port, wait_until

from cluster.apt import cannot_install, install

PACKAGES = {
    "munged": "munge", "slurmctld": "slurmctld", "slurmd": "slurmd",
    **dict.fromkeys(("sbatch", "srun", "scontrol"), "slurm-client"),
}  # fmt: skip
START_LIMIT_S = 60.0
COMMAND_LIMIT_S = 30.0
STOP_LIMIT_S = 60.0
# How long slurmctld waits for a silent slurmd before its node is down.
SLURMD_TIMEOUT_S = 15
# A credential's life: a requeued job waits so long before it starts again (Slurm's default is 120 s).
CREDENTIAL_S = 5
GPUS = 4  # per node: empty files, which Slurm counts and hands out like devices


def unfit() -> str | None:
    """Why this machine cannot have Slurm's nodes; None when it can."""
    if os.geteuid() != 0:
        return "several Slurm nodes on one machine need root"
    return cannot_install(PACKAGES)


def install_slurm() -> None:
    """By apt, where it is missing. AssertionError with apt's words where that fails."""
    install(PACKAGES)


@dataclass
class Slurm:
    """The running cluster. Commands have deadlines; failures show the daemons' logs."""

    folder: Path
    nodes: tuple[str, ...]
    daemons: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def conf(self) -> Path:
        """slurm.conf, which names everything else."""
        return self.folder / "slurm.conf"

    def environment(self, **more: str) -> dict[str, str]:
        """For Slurm's commands, and by way of sbatch for the jobs."""
        kept = {name: value for name, value in environment().items() if not name.startswith("SLURM")}
        return {**kept, "SLURM_CONF": str(self.conf), **more}

    def run(self, *command: str, cwd: Path | None = None, **variables: str) -> str:
        """Output of one of Slurm's commands. AssertionError with the logs where it fails."""
        done = self.attempt(*command, cwd=cwd, **variables)
        assert done.returncode == 0, (
            f"{' '.join(command)}: {done.returncode}\n{done.stdout}{done.stderr}\n{self.logs()}"
        )
        return done.stdout

    def attempt(
        self, *command: str, cwd: Path | None = None, **variables: str
    ) -> subprocess.CompletedProcess[str]:
        """The same, whatever its exit code."""
        return subprocess.run(
            command, cwd=cwd, env=self.environment(**variables), capture_output=True, text=True,
            timeout=COMMAND_LIMIT_S, check=False,
        )  # fmt: skip

    def job(self, job: str) -> dict[str, str]:
        """What `scontrol show job` says of one job, by name: JobState, ExitCode, Restarts, NodeList …"""
        words = self.run("scontrol", "--oneliner", "show", "job", job).splitlines()[0].split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def states(self) -> dict[str, str]:
        """State of every node."""
        lines = self.run("sinfo", "--noheader", "--Node", "--format=%N %T").split("\n")
        return dict(line.split() for line in lines if line)

    def start(self) -> None:
        """All daemons, until every node is idle."""
        self._write()
        self._munged()
        self._daemon("slurmctld", "slurmctld", "-D", "-f", str(self.conf))
        for node in self.nodes:
            self.start_node(node)
        self.await_(
            lambda: set(self.states().values()) == {"idle"}, what="idle nodes", timeout_s=START_LIMIT_S
        )

    def start_node(self, node: str) -> None:
        """Its slurmd, for the first time or again."""
        self._daemon(node, "slurmd", "-D", "-N", node, "-f", str(self.conf))

    def kill_node(self, node: str, *, power: bool = True) -> list[psutil.Process]:
        """Its slurmd ends at once, and with ``power`` all that it runs; else that runs on, and is returned."""
        tasks = [process for process in self.processes() if _node_of(process) == node]
        assert tasks, f"nothing runs on {node}"
        # the daemons first: none may live to report that its tasks died
        steps = {parent for task in tasks if (parent := task.parent()) and parent.name() == "slurmstepd"}
        assert steps
        self.daemons[node].kill()
        for process in (*steps, *tasks) if power else ():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self.daemons.pop(node).wait()
        return [] if power else tasks

    def repair_node(self, node: str) -> None:
        """Start a killed one again, until Slurm may use it."""
        self.start_node(node)
        self.await_(lambda: self.states()[node] == "idle", what=f"{node} to be idle", timeout_s=START_LIMIT_S)

    def processes(self) -> list[psutil.Process]:
        """Everything that runs under this Slurm, daemons included."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
                # a step's daemon writes its title over its environment, but stays where it was started
                ours = process.environ().get("SLURM_CONF") == str(self.conf) or process.cwd() == str(
                    self.folder
                )
                if ours and process.pid != os.getpid():
                    found.append(process)
        return found

    def stop(self) -> None:
        """End all jobs and daemons; AssertionError naming those that had to be killed."""
        with contextlib.suppress(AssertionError, subprocess.TimeoutExpired):
            self.run("scancel", "--user=root")
            self.await_(
                lambda: not self.run("squeue", "--noheader"), what="jobs to end", timeout_s=STOP_LIMIT_S
            )
        # what a killed slurmd left: its successor would wait for it
        self._kill([one for one in self.processes() if one.name() == "slurmstepd" or _node_of(one)])
        for daemon in reversed(self.daemons.values()):
            daemon.send_signal(signal.SIGTERM)
        late = []
        for name, daemon in self.daemons.items():
            try:
                daemon.wait(STOP_LIMIT_S)
            except subprocess.TimeoutExpired:
                late.append(name)
                daemon.kill()
                daemon.wait()
        self._kill(self.processes())
        assert not late, f"{late} did not end within {STOP_LIMIT_S:.0f} s\n{self.logs()}"

    def _kill(self, processes: list[psutil.Process]) -> None:
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(processes, timeout=STOP_LIMIT_S)

    def await_(self, condition: Callable[[], Any], *, what: str, timeout_s: float) -> None:
        """Return once ``condition()`` is true. AssertionError with the daemons' logs after ``timeout_s``."""

        def holds() -> Any:
            dead = [name for name, daemon in self.daemons.items() if daemon.poll() is not None]
            assert not dead, f"{dead} ended while one waited for {what}"
            return condition()

        try:
            wait_until(holds, what=what, timeout_s=timeout_s, every_s=0.3)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.logs()}") from None

    def logs(self) -> str:
        """The end of every daemon's log."""
        return "\n".join(
            f"--- {path.name}\n{path.read_text(encoding='utf-8', errors='replace')[-2000:]}"
            for path in sorted(self.folder.glob("*.log"))
        )

    def _write(self) -> None:
        (self.folder / "state").mkdir(parents=True)
        self.folder.chmod(0o711)  # munged: all must be able to reach its socket

        key = self.folder / "munge.key"
        key.write_bytes(secrets.token_bytes(128))
        key.chmod(0o600)
        self.conf.write_text(_conf(self.folder, self.nodes), encoding="utf-8")
        for number in range(GPUS):
            (self.folder / f"gpu{number}").touch()
        (self.folder / "gres.conf").write_text(f"Name=gpu File={self.folder}/gpu[0-{GPUS - 1}]\n", "utf-8")

    def _munged(self) -> None:
        place = self.folder
        self._daemon(
            "munged", "munged", "--foreground", f"--socket={place}/munge.sock", f"--key-file={place}/munge.key",
            f"--pid-file={place}/munged.pid", f"--log-file={place}/munged.log", f"--seed-file={place}/munge.seed",
        )  # fmt: skip
        self.await_((place / "munge.sock").exists, what="munged", timeout_s=START_LIMIT_S)

    def _daemon(self, name: str, *command: str) -> None:
        with (self.folder / f"{name}.log").open("ab") as log:
            self.daemons[name] = subprocess.Popen(
                command, cwd=self.folder, env=self.environment(), stdout=log, stderr=log
            )


def _node_of(process: psutil.Process) -> str | None:
    """Where a job's process runs; None for a daemon."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.environ().get("SLURMD_NODENAME")
    return None


def _conf(folder: Path, nodes: tuple[str, ...]) -> str:
    host = socket.gethostname().split(".")[0]
    ports = {node: free_port() for node in nodes}
    places = "\n".join(
        f"NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=8 RealMemory=8000 Gres=gpu:{GPUS}"
        for node, port in ports.items()
    )
    return f"""ClusterName=distill
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={free_port()}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.sock,cred_expire={CREDENTIAL_S}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdParameters=config_overrides
SlurmdTimeout={SLURMD_TIMEOUT_S}
ReturnToService=2
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
GresTypes=gpu
MpiDefault=none
KillWait=20
SchedulerParameters=sched_interval=2,bf_interval=2
{places}
PartitionName=batch Nodes=ALL Default=YES MaxTime=INFINITE OverSubscribe=NO State=UP
"""


def start_slurm(folder: Path, *, nodes: int) -> Slurm:
    """A cluster of nodes n1, n2, …; :meth:`Slurm.stop` ends it. Nothing runs on when it cannot start."""
    cluster = Slurm(folder, tuple(f"n{number}" for number in range(1, nodes + 1)))
    try:
        cluster.start()
    except BaseException:
        cluster.stop()
        raise
    return cluster

"""Several hosts on this machine, each with a network, a name, processes and an sshd of its own; none left behind.

A host is a network namespace (`ip netns`) whose first process, of a process namespace too, is its sshd: whatever was
started there ends with that. All are plugged into one bridge, in a namespace of its own, so that the machine's own
network is neither used nor disturbed. The file system is shared, as on a cluster.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from tiny import REPOSITORY, wait_until

from cluster.apt import cannot_install, install

PACKAGES = {"sshd": "openssh-server", "ssh": "openssh-client", "pdsh": "pdsh", "ip": "iproute2"}
START_LIMIT_S = 30.0
STOP_LIMIT_S = 30.0
COMMAND_LIMIT_S = 30.0
NETWORK = "10.77.0"
_SSHD = """
Port 22
ListenAddress 0.0.0.0
HostKey /etc/ssh/host_key
AuthorizedKeysFile /etc/ssh/key.pub
PermitRootLogin prohibit-password
PasswordAuthentication no
UsePAM no
StrictModes no
PidFile none
PrintMotd no
"""
_SSH = """
Host *
IdentityFile /etc/ssh/key
StrictHostKeyChecking no
UserKnownHostsFile /dev/null
LogLevel ERROR
ServerAliveInterval {alive_s}
ServerAliveCountMax 2
"""
# How long an ssh waits for a silent host, twice: a launcher would wait for one that is cut off for ever.
ALIVE_S = 5


def unfit() -> str | None:
    """Why this machine cannot have hosts; None when it can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    return cannot_install(PACKAGES)


def install_hosts() -> None:
    """What the hosts need, by apt, where it is missing. AssertionError with apt's words where that fails."""
    install(PACKAGES)


@dataclass
class Hosts:
    """Hosts h1, h2, … at 10.77.0.1, 10.77.0.2, … Each believes, as Debian's do, that it is itself at 127.0.1.1."""

    folder: Path
    names: tuple[str, ...]
    _roots: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def address(self, host: str) -> str:
        """Of ``host`` in their network."""
        return f"{NETWORK}.{self.names.index(host) + 1}"

    def start(self) -> None:
        """All of them, until each reaches every other by ssh."""
        _sweep()
        Path("/run/sshd").mkdir(exist_ok=True)  # sshd wants it; Debian makes it at boot
        _run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self.folder / "key"))
        _run("ip", "netns", "add", self._bridge)
        _run("ip", "-n", self._bridge, "link", "add", "bridge", "type", "bridge")
        _run("ip", "-n", self._bridge, "link", "set", "bridge", "up")
        for host in self.names:
            self._plug(host)
            self._configure(host)
            self._boot(host)
        for host in self.names:
            wait_until(
                lambda host=host: self._answers(host), what=f"sshd of {host}", timeout_s=START_LIMIT_S, every_s=0.2
            )  # fmt: skip

    def _plug(self, host: str) -> None:
        """Its namespace, and a cable to the bridge: `eth0` there, named after the host here."""
        space = self._space(host)
        _run("ip", "netns", "add", space)
        _run(
            "ip",
            "-n",
            space,
            "link",
            "add",
            "eth0",
            "type",
            "veth",
            "peer",
            "name",
            host,
            "netns",
            self._bridge,
        )
        _run("ip", "-n", self._bridge, "link", "set", host, "master", "bridge", "up")
        _run("ip", "-n", space, "addr", "add", f"{self.address(host)}/24", "dev", "eth0")
        for link in ("lo", "eth0"):
            _run("ip", "-n", space, "link", "set", link, "up")

    def _configure(self, host: str) -> None:
        """Its /etc/hosts and /etc/ssh, which `ip netns exec` puts over the machine's."""
        etc = Path("/etc/netns") / self._space(host)
        (etc / "ssh").mkdir(parents=True)
        others = [f"{self.address(other)} {other}" for other in self.names if other != host]
        lines = ["127.0.0.1 localhost", f"127.0.1.1 {host}", *others]
        (etc / "hosts").write_text("\n".join(lines) + "\n", encoding="utf-8")
        for name, text in (("sshd_config", _SSHD), ("ssh_config", _SSH.format(alive_s=ALIVE_S))):
            (etc / "ssh" / name).write_text(text, encoding="utf-8")
        shutil.copy(self.folder / "key", etc / "ssh" / "host_key")
        for name in ("key", "key.pub"):
            shutil.copy(self.folder / name, etc / "ssh" / name)

    def _boot(self, host: str) -> None:
        command = [
            "setpriv", "--pdeathsig", "KILL",  # tests that are killed leave no host
            "ip", "netns", "exec", self._space(host), "unshare", "--uts", "--pid", "--fork", "--mount-proc",
            "--kill-child", "sh", "-c", f"hostname {host} && exec {shutil.which('sshd')} -D -e",
        ]  # fmt: skip
        with (self.folder / f"{host}.log").open("wb") as log:
            self._roots[host] = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)

    def _answers(self, host: str) -> bool:
        assert self._roots[host].poll() is None, (self.folder / f"{host}.log").read_text()
        if not psutil.Process(self._roots[host].pid).children():
            return False
        command = self.command(self.names[0], "ssh", host, "hostname")
        done = subprocess.run(command, capture_output=True, text=True, timeout=COMMAND_LIMIT_S, check=False)
        return done.stdout == f"{host}\n"

    def stop(self) -> None:
        """End all that runs on them, and them."""
        for root in self._roots.values():
            with contextlib.suppress(psutil.NoSuchProcess):
                for child in psutil.Process(root.pid).children():
                    child.kill()  # the first of its namespace: all others go with it
            root.wait(STOP_LIMIT_S)
        for space in (*map(self._space, self.names), self._bridge):
            _remove(space)
        with contextlib.suppress(OSError):
            Path("/etc/netns").rmdir()

    # ------------------------------------------------------------------ in use

    def command(self, host: str, *command: str) -> list[str]:
        """``command`` as somebody who is logged in on ``host`` would start it in the repository."""
        (first,) = psutil.Process(self._roots[host].pid).children()
        spaces = ["nsenter", "--target", str(first.pid), "--net", "--uts", "--pid", "--mount"]
        return [*spaces, "env", "-C", str(REPOSITORY), *command]

    @contextmanager
    def cut(self, host: str) -> Iterator[None]:
        """Its cable is out of the bridge while the block runs: nothing comes back, not even an error."""
        self.pull(host)
        try:
            yield
        finally:
            self.plug_in(host)

    def pull(self, host: str) -> None:
        """Pull its cable out of the bridge."""
        _run("ip", "-n", self._bridge, "link", "set", host, "down")

    def plug_in(self, host: str) -> None:
        """Put it back."""
        _run("ip", "-n", self._bridge, "link", "set", host, "up")

    def processes(self, host: str) -> list[psutil.Process]:
        """What runs there, but for its sshd."""
        (first,) = psutil.Process(self._roots[host].pid).children()
        here = os.readlink(f"/proc/{first.pid}/ns/pid")
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(OSError, psutil.NoSuchProcess):
                here_too = os.readlink(f"/proc/{process.pid}/ns/pid") == here
                if here_too and process.name() != "sshd" and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    def run(self, host: str, *command: str) -> None:
        """``command`` there, to its end. AssertionError where it fails."""
        _run(*self.command(host, *command))

    def clear(self) -> None:
        """Kill what runs there."""
        left = [process for host in self.names for process in self.processes(host)]
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(left, timeout=STOP_LIMIT_S)

    @property
    def _bridge(self) -> str:
        return f"dd{os.getpid()}"

    def _space(self, host: str) -> str:
        return f"dd{os.getpid()}{host}"


def _remove(space: str) -> None:
    subprocess.run(["ip", "netns", "del", space], check=False, capture_output=True)
    shutil.rmtree(Path("/etc/netns") / space, ignore_errors=True)


def _sweep() -> None:
    """Remove the namespaces of tests that were killed."""
    for path in Path("/run/netns").glob("dd*"):
        owner = re.fullmatch(r"dd(\d+)(?:h\d+)?", path.name)
        if owner and not psutil.pid_exists(int(owner[1])):
            _remove(path.name)


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=COMMAND_LIMIT_S, check=False)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr or done.stdout}"


def start_hosts(folder: Path, *, number: int) -> Hosts:
    """Hosts h1, h2, …; :meth:`Hosts.stop` ends them. Nothing is left where they cannot start."""
    hosts = Hosts(folder, tuple(f"h{n}" for n in range(1, number + 1)))
    try:
        hosts.start()
    except BaseException:
        hosts.stop()
        raise
    return hosts


DEEPSPEED = Path(sys.executable).with_name("deepspeed")
TORCHRUN = Path(sys.executable).with_name("torchrun")

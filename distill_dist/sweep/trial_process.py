"""One trial under its launcher: how it is started, which of its processes are ranks, and how it is told to stop."""

from __future__ import annotations

import contextlib
import os
import random
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import psutil

from distill_dist.errors import UserError
from distill_dist.sweep.plan import Trial

TRAIN = Path(__file__).resolve().parents[2] / "launcher" / "train.py"
# They would all listen on the same port, if none were named.
_PORT_OF = {"deepspeed": "--master_port", "torchrun": "--master_port"}
_PLACES = ("{port}", "{slot}")


def trial_command(launch: str, trial: Trial, *, slot: int) -> list[str]:
    """``launch`` in front of launcher/train.py for ``trial``: `{port}` is a free port, `{slot}` counts trials that run.

    deepspeed and torchrun get their port unasked. Raises UserError.
    """
    port = str(free_port())
    words = [word.replace("{port}", port).replace("{slot}", str(slot)) for word in _words(launch)]
    for number, word in enumerate(words):
        option = _PORT_OF.get(Path(word).name)
        if option and not any(given.startswith((option, option.replace("_", "-"))) for given in words):
            words[number + 1 : number + 1] = [option, port]
            break
    return [*words, str(TRAIN), "--config", str(trial.config_file)]


def _words(launch: str) -> list[str]:
    try:
        words = shlex.split(launch)
    except ValueError as error:
        raise UserError(f"--launch {launch!r}: {error}") from None
    if not words:
        raise UserError("--launch is empty: `python`, or a launcher with its options")
    if words[0] in ("python", "deepspeed", "torchrun"):
        # of the environment that runs the sweep, activated or not
        beside = Path(sys.executable).with_name(words[0])
        words[0] = str(beside) if beside.exists() else words[0]
    return words


def launched_processes(launch: str) -> int | None:
    """How many processes ``launch`` starts; None where that cannot be told."""
    words = [part for word in _words(launch) for part in word.split("=", 1)]
    names = {Path(word).name for word in words}
    if not names & _PORT_OF.keys():
        return 1 if names <= {Path(sys.executable).name, "python", "python3"} else None
    for word, value in pairwise(words):
        if word.lstrip("-").replace("-", "_") in ("num_gpus", "nproc_per_node") and value.isdigit():
            return int(value)
    return None


def free_port() -> int:
    """A port that nothing listens on, below those that kernels give away of their own accord (from 32768 on)."""
    for port in random.SystemRandom().sample(range(15000, 32000), 100):
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            return port
    raise UserError("no free port between 15000 and 32000 for a trial")


def start_trial(command: Sequence[str], trial: Trial) -> subprocess.Popen[bytes]:
    """Start it in a session of its own, so that a keyboard reaches it by way of us only. Raises UserError."""
    log = launch_log(trial)
    log.parent.mkdir(parents=True, exist_ok=True)
    others = (
        "RANK",
        "WORLD_SIZE",
        "LOCAL_RANK",
        "LOCAL_SIZE",
        "LOCAL_WORLD_SIZE",
        "MASTER_ADDR",
        "MASTER_PORT",
    )
    variables = {name: value for name, value in os.environ.items() if name not in others}
    if trial.config.cluster.device == "cpu":
        variables["DS_ACCELERATOR"] = "cpu"  # deepspeed's launcher too has to count CPU slots, not GPUs
    try:
        with log.open("ab") as file:
            return subprocess.Popen(
                list(command), env=variables, stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True
            )  # fmt: skip
    except OSError as error:
        raise UserError(f"--launch: {command[0]} cannot be started: {error.strerror}") from None


def launch_log(trial: Trial) -> Path:
    """What the launcher and its ranks print."""
    return trial.folder / "logs" / "launch.out"


def ranks_of(trial: Trial) -> list[psutil.Process]:
    """The trial's ranks on this host, whoever started them: what runs train.py with its configuration.

    Not the launchers, which carry the same words: deepspeed's passes no signal on, or kills what does not end at once.
    """
    carriers: dict[int, tuple[psutil.Process, list[str]]] = {}
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            words = process.cmdline()
            if str(trial.config_file) in words and any(Path(word).name == TRAIN.name for word in words):
                carriers[process.pid] = (process, words)
    parents = {pid: _parent(process) for pid, (process, _) in carriers.items()}
    # a fork carries its parent's words and is none of its own; who starts one with other words is a launcher
    forks = {pid for pid, up in parents.items() if up in carriers and carriers[up][1] == carriers[pid][1]}
    launchers = {up for pid, up in parents.items() if up in carriers and pid not in forks}
    return [process for pid, (process, _) in carriers.items() if pid not in forks | launchers]


def _parent(process: psutil.Process) -> int:
    try:
        return int(process.ppid())
    except psutil.Error:
        return 0


def ask_to_stop(trial: Trial, process: subprocess.Popen[bytes] | None) -> None:
    """Its ranks save and end; where none is there yet, its launcher ends."""
    ranks = ranks_of(trial)
    for rank in ranks:
        with contextlib.suppress(psutil.Error):
            rank.send_signal(signal.SIGTERM)
    if not ranks and process is not None and process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)


def kill_trial(trial: Trial, process: subprocess.Popen[bytes]) -> None:
    """At once, with all that it started on this host."""
    started = []
    with contextlib.suppress(psutil.Error):
        started = psutil.Process(process.pid).children(recursive=True)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    for one in (*started, *ranks_of(trial)):
        with contextlib.suppress(psutil.Error):
            one.kill()
    process.wait()

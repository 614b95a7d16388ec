"""A tiny world for tests with real processes: a prepared corpus, a teacher, and ranks to start and to kill.

Sizes are chosen so that a run takes seconds, most of them imports. Every wait has a deadline; what fails prints
the logs of all ranks.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

REPOSITORY = Path(__file__).parents[1]
DEEPSPEED = Path(sys.executable).with_name("deepspeed")  # not on PATH where the environment is not activated
RUN_LIMIT_S = 150.0  # of a run that takes 15 s on two free cores: tests run beside each other
ENDS_WITHIN_S = 60.0  # what the project promises of a run that lost a process


def environment(**more: str) -> dict[str, str]:
    """The parent's environment for one rank: one thread, no colours, nobody else's launcher."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if name not in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_SIZE", "MASTER_ADDR", "MASTER_PORT")
    }
    paths = [str(REPOSITORY), str(REPOSITORY / "tests")]
    return {
        **kept,
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "DS_ACCELERATOR": "cpu",
        "PYTHONPATH": os.pathsep.join(paths),
        **more,
    }


def free_port() -> int:
    """A port that nothing listens on, outside the range from which kernels take ports of their own accord."""
    for port in random.SystemRandom().sample(range(15000, 32000), 100):
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            return port
    raise RuntimeError("no free port between 15000 and 32000")


def port_is_free(port: int) -> bool:
    """Whether one can listen on ``port`` again; connections in TIME_WAIT do not count (SO_REUSEADDR)."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def wait_until(condition: Callable[[], Any], *, what: str, timeout_s: float, every_s: float = 0.005) -> None:
    """Return once ``condition()`` is true; AssertionError naming ``what`` after ``timeout_s``."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"waited {timeout_s:.0f} s for {what}"
        time.sleep(every_s)


@dataclass
class Started:
    """Processes of one run: each rank's by hand, or the one launcher that starts them."""

    processes: list[subprocess.Popen[bytes]]
    logs: Path  # NUMBER.out and NUMBER.err per process
    port: int
    _seen: dict[int, psutil.Process] = field(default_factory=dict)

    def wait(self, timeout_s: float = RUN_LIMIT_S) -> list[int]:
        """Exit codes. AssertionError with the logs when one is not done in time; all are killed then."""
        deadline = time.monotonic() + timeout_s
        try:
            for number, process in enumerate(self.processes):
                try:
                    process.wait(max(0.0, deadline - time.monotonic()))
                except subprocess.TimeoutExpired:
                    late = [n for n, other in enumerate(self.processes) if other.poll() is None]
                    raise AssertionError(
                        f"processes {late} still run after {timeout_s:.0f} s (first: {number})\n{self.text()}"
                    ) from None
        finally:
            self.kill()
        return [process.returncode for process in self.processes]

    def kill(self) -> None:
        """SIGKILL to everything of the run that still lives."""
        for process in self.alive():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        for popen in self.processes:
            popen.wait()

    def alive(self) -> list[psutil.Process]:
        """Processes of the run, descendants included, that are neither gone nor zombies."""
        for popen in self.processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                root = psutil.Process(popen.pid)
                self._seen.setdefault(root.pid, root)
                for child in root.children(recursive=True):
                    self._seen.setdefault(child.pid, child)
        return [process for process in self._seen.values() if _lives(process)]

    def stdout(self, number: int = 0) -> str:
        """What process ``number`` has printed so far."""
        return (self.logs / f"{number}.out").read_text(encoding="utf-8", errors="replace")

    def stderr(self, number: int = 0) -> str:
        """What process ``number`` has said so far."""
        return (self.logs / f"{number}.err").read_text(encoding="utf-8", errors="replace")

    def text(self) -> str:
        """Both streams of all processes, for a failure's message."""
        parts = []
        for number in range(len(self.processes)):
            parts.append(f"--- stdout {number}\n{self.stdout(number)[-3000:]}")
            parts.append(f"--- stderr {number}\n{self.stderr(number)[-6000:]}")
        return "\n".join(parts)


def _lives(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def start(commands: list[list[str]], environments: list[dict[str, str]], *, logs: Path, port: int) -> Started:
    """Start all ``commands``, each with its environment, from the repository's root."""
    logs.mkdir(parents=True, exist_ok=True)
    processes = []
    for number, (command, variables) in enumerate(zip(commands, environments, strict=True)):
        with (logs / f"{number}.out").open("wb") as out, (logs / f"{number}.err").open("wb") as err:
            processes.append(subprocess.Popen(command, cwd=REPOSITORY, env=variables, stdout=out, stderr=err))
    return Started(processes, logs, port)


def start_ranks(
    arguments: list[str], *, size: int, logs: Path, launcher: str = "train.py", **variables: str
) -> Started:
    """``size`` ranks started by hand, as torchrun or srun would: exit codes come through."""
    port = free_port()
    command = [sys.executable, str(REPOSITORY / "launcher" / launcher), *arguments]
    environments = [
        environment(
            RANK=str(rank),
            WORLD_SIZE=str(size),
            LOCAL_RANK=str(rank),
            LOCAL_SIZE=str(size),
            MASTER_ADDR="127.0.0.1",
            MASTER_PORT=str(port),
            **variables,
        )
        for rank in range(size)
    ]
    return start([command] * size, environments, logs=logs, port=port)


def start_deepspeed(arguments: list[str], *, size: int, logs: Path) -> Started:
    """The real DeepSpeed launcher with ``size`` local processes."""
    port = free_port()
    command = [
        str(DEEPSPEED), "--num_gpus", str(size), "--master_addr", "127.0.0.1", "--master_port", str(port),
        str(REPOSITORY / "launcher" / "train.py"), *arguments,
    ]  # fmt: skip
    return start([command], [environment()], logs=logs, port=port)


def launch(launcher: str, arguments: list[str], *, logs: Path, timeout_s: float = RUN_LIMIT_S) -> Started:
    """One process without any launcher, waited for; its exit code is ``.processes[0].returncode``."""
    command = [sys.executable, str(REPOSITORY / "launcher" / launcher), *arguments]
    started = start([command], [environment()], logs=logs, port=0)
    started.wait(timeout_s)
    return started


def last_json(text: str) -> dict[str, Any]:
    """Our own line: the last one on stdout that is a JSON object (DeepSpeed's launcher logs there too)."""
    for line in reversed(text.splitlines()):
        with contextlib.suppress(ValueError):
            found = json.loads(line)
            if isinstance(found, dict):
                return found
    raise AssertionError(f"no JSON line in:\n{text}")


@dataclass(frozen=True)
class World:
    """A prepared corpus and a fine-tuned teacher over it."""

    prepared: Path
    teacher_run: Path

    @property
    def data(self) -> list[str]:
        """The `data` section."""
        return corpus(self.prepared)

    def student(self, run_dir: Path, *more: str) -> list[str]:
        """Arguments of a run that cuts a student of 2 layers from the teacher: 50 steps an epoch."""
        return [
            f"run_dir={run_dir}",
            *self.data,
            "student.path=${teacher.path}",
            "student.layers=2",
            f"teacher.path={self.teacher_run}/model",
            "batch.size=8",
            "batch.micro_tokens=64",  # one to three micro-batches a step
            "train.learning_rate=1e-3",
            "train.epochs=2",
            "train.log_every=5",
            "cluster.device=cpu",
            "cluster.threads=1",
            "teacher.patience_s=15",
            *more,
        ]


TRAIN_ROWS, DEV_ROWS = 400, 60


def corpus(prepared: Path) -> list[str]:
    """The `data` section of a generated corpus of a few hundred rows."""
    return [
        "data.source=synthetic_nli", f"data.prepared={prepared}", "data.max_length=64",
        "data.synthetic.max_steps=1", f"data.synthetic.train_rows={TRAIN_ROWS}",
        f"data.synthetic.dev_rows={DEV_ROWS}",
    ]  # fmt: skip


def prepare_corpus(folder: Path, *more: str) -> Path:
    """A generated corpus of a few hundred rows below ``folder``."""
    prepared = folder / "prepared"
    done = launch("prepare.py", [*corpus(prepared), *more], logs=folder / "logs-prepare")
    assert done.processes[0].returncode == 0, done.text()
    return prepared


def teacher_arguments(prepared: Path, run_dir: Path) -> list[str]:
    """Arguments that train the teacher: a random BERT of 4 layers, 300 steps.

    Enough for predictions that are not all of one class.
    """
    return [
        "method=finetune",
        f"run_dir={run_dir}",
        *corpus(prepared),
        "student.shape.hidden_size=32",
        "student.shape.num_hidden_layers=4",
        "student.shape.num_attention_heads=4",
        "student.shape.intermediate_size=64",
        "student.dropout=0",
        "batch.size=8",
        "train.learning_rate=3e-3",
        "train.epochs=6",
        "cluster.device=cpu",
        "cluster.threads=1",
    ]


def make_world(folder: Path) -> World:
    """Prepare the corpus and train the teacher; about 20 s."""
    prepared = prepare_corpus(folder)
    run_dir = folder / "teacher"
    done = launch("train.py", teacher_arguments(prepared, run_dir), logs=folder / "logs-teacher")
    assert done.processes[0].returncode == 0, done.text()
    return World(prepared, run_dir)


def trace(run_dir: Path, student: int = 0) -> list[dict[str, Any]]:
    """Whole lines of a student's trace so far."""
    path = run_dir / f"trace-{student:05d}.jsonl"
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]


def state(run_dir: Path) -> dict[str, Any]:
    """The run's verdict."""
    found = json.loads((run_dir / "state.json").read_text(encoding="utf-8"))
    assert isinstance(found, dict)
    return found


def rank_process(started: Started, rank: int) -> psutil.Process:
    """The process of global ``rank``, whoever started it."""
    for process in started.alive():
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            variables = process.environ()
            command = " ".join(process.cmdline())
            if variables.get("RANK") == str(rank) and "launcher/train.py" in command:
                return process
    raise AssertionError(f"no process of rank {rank}\n{started.text()}")


def kill_rank(started: Started, rank: int, number: int = signal.SIGKILL) -> None:
    """Send a signal to the process of global ``rank``."""
    rank_process(started, rank).send_signal(number)


@contextlib.contextmanager
def running(started: Started) -> Iterator[Started]:
    """Kill whatever is left when the block ends, however it ends."""
    try:
        yield started
    finally:
        started.kill()

"""One side of a comparison in a process of its own, on one core: a job goes in, figures come out.

Standard library only: another library's side runs under another interpreter.
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

from distill_dist.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
# what launchers set: a side is a world of one
OF_LAUNCHERS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def run_apart(module: str, job: dict[str, Any], *, python: Path | str = sys.executable) -> dict[str, Any]:
    """What the task ``job["task"]`` of ``module`` found, in a new process of ``python``; its output is not shown.

    Raises UserError when the system killed it, which is how a lack of memory ends.
    """
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder, "result.json")
        environment = {name: value for name, value in os.environ.items() if name not in OF_LAUNCHERS}
        done = subprocess.run(
            # absolute, for the folder is another one; not resolved, for a link is what makes a virtual environment
            [str(Path(python).absolute()), "-m", module, json.dumps(job), str(result)],
            env=environment | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "TMPDIR": folder},
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            check=False,
        )
        if done.returncode == -9:
            raise UserError(f"{module} was killed, most likely for lack of memory: take fewer --rows")
        if done.returncode:
            raise RuntimeError(f"{module} failed with {done.returncode} on {job}:\n{done.stdout[-4000:]}")
        found: dict[str, Any] = json.loads(result.read_text(encoding="utf-8"))
        return found


def answer(tasks: dict[str, Callable[..., dict[str, Any]]]) -> None:
    """The other end of :func:`run_apart`: the job's task with its other fields as arguments, on one core."""
    job = json.loads(sys.argv[1])
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    found = tasks[job.pop("task")](**job)
    Path(sys.argv[2]).write_text(json.dumps(found), encoding="utf-8")


class PeakMemory:
    """``bytes``: the most resident memory inside the block beyond what there was before; mapped files count."""

    bytes = 0

    def __enter__(self) -> PeakMemory:
        gc.collect()
        Path("/proc/self/clear_refs").write_text(
            "5", encoding="ascii"
        )  # the high-water mark begins anew: proc(5)
        self._before = _proc("status", "VmRSS")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.bytes = max(0, _proc("status", "VmHWM") - self._before) * 1024


class Stopwatch:
    """Of the block: ``seconds``, of them on the processor ``cpu_s``, and ``read_bytes`` that came from a disk."""

    seconds = cpu_s = 0.0
    read_bytes = 0

    def __enter__(self) -> Stopwatch:
        self._begin = (time.perf_counter(), time.process_time(), _proc("io", "read_bytes"))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        seconds, cpu_s, read_bytes = self._begin
        self.seconds, self.cpu_s = time.perf_counter() - seconds, time.process_time() - cpu_s
        self.read_bytes = _proc("io", "read_bytes") - read_bytes


def available_memory() -> int:
    """Bytes that the machine can give without swapping."""
    return _number("/proc/meminfo", "MemAvailable") * 1024


def _proc(file: str, name: str) -> int:
    return _number(f"/proc/self/{file}", name)


def _number(path: str, name: str) -> int:
    for line in Path(path).read_text(encoding="ascii").splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1])
    raise AssertionError(f"{path} has no {name}")

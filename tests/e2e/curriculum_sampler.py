"""Starts and kills the runs of curriculum_sampler_child.py, which have everything of a curriculum's but a network."""

from __future__ import annotations

import contextlib
import mmap
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Self

PHASES = ("starting", "scoring", "commit", "planning", "batches", "checkpoint")
MODES: dict[str, list[str]] = {
    "pass": [],
    "served": ["curriculum.score=served"],
    "windows": ["data.window_shards=2"],
    "plain": ["curriculum.order=none", "reliance.rule=constant"],
    "plain in windows": ["curriculum.order=none", "reliance.rule=constant", "data.window_shards=2"],
    "hard to easy": ["curriculum.order=hard_to_easy"],
    "random": ["curriculum.order=random"],
    "frozen": ["curriculum.order=frozen"],
    "by label": ["curriculum.stratify=label"],
    "teacher": ["curriculum.source=teacher"],
    "weighted": ["reliance.rule=weighted", "reliance.control=mean_matched"],
    "bell": ["reliance.rule=bell", "reliance.control=permuted"],
    "repeating": ["curriculum.once_per_pass=false"],
    **{
        name: [f"curriculum.pacing={name}"]
        for name in (
            "none",
            "quadratic",
            "root",
            "step",
            "exponential",
            "logarithmic",
            "competence",
            "fixed_exponential",
        )
    },
}
"""Name -> what differs from KD-CL-SR with linear pacing."""
EPOCHS, BATCH, CHECKPOINT_EVERY = 4, 8, 5
SHARED = (
    "curriculum.order=easy_to_hard", "curriculum.keep_snapshots=2", f"batch.size={BATCH}", "batch.length_window=4",
    f"train.epochs={EPOCHS}",
)  # fmt: skip
LIMIT_S = 60.0
CHILD = Path(__file__).with_name("curriculum_sampler_child.py")


class Sampler:
    """The process that forks runs; a context manager."""

    def __init__(self, prepared: Path) -> None:
        """``prepared``: the corpus."""
        self._shown = tempfile.NamedTemporaryFile()  # noqa: SIM115 - closed in __exit__
        self._shown.write(b"\0")
        self._shown.flush()
        self._phase = mmap.mmap(self._shown.fileno(), 1)
        tests = Path(__file__).parents[1]
        self._process = subprocess.Popen(
            [sys.executable, str(CHILD), str(prepared), self._shown.name],
            env={**os.environ, "PYTHONPATH": f"{tests.parent}{os.pathsep}{tests}", "OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        """End it."""
        self._process.kill()
        self._process.communicate()
        self._phase.close()
        self._shown.close()

    def run(self, run_dir: Path, mode: str, *more: str) -> int:
        """Run to the end; its exit code. ``more`` is further configuration."""
        self._start(run_dir, mode, *more)
        return self._answer()

    def kill(self, run_dir: Path, mode: str, *, wanted: str, later_s: float) -> str | None:
        """SIGKILL ``later_s`` after it was first at ``wanted``; what it was at. None where it ended before."""
        process = self._start(run_dir, mode)
        number, deadline = PHASES.index(wanted), time.monotonic() + LIMIT_S
        while self._phase[0] != number and _is_running(process):
            assert time.monotonic() < deadline, f"no {wanted}"
        time.sleep(later_s)
        with contextlib.suppress(ProcessLookupError):  # it may have ended
            os.kill(process, signal.SIGKILL)
        code = self._answer()
        assert code in (0, -signal.SIGKILL), code
        return None if code == 0 else PHASES[self._phase[0]]

    def _start(self, run_dir: Path, mode: str, *more: str) -> int:
        assert self._process.stdin is not None
        print(run_dir, mode, *more, sep="\t", file=self._process.stdin, flush=True)
        return self._answer()

    def _answer(self) -> int:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, f"the sampler is gone: {self._process.wait()}"
        return int(line)


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True

"""launcher/evaluate.py for every run that has not been scored as the study asks, some at a time."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from distill_dist.errors import Interrupted, UserError
from distill_dist.hub import locate, weights_digest
from distill_dist.report.figures import HEADLINE_SL

EVALUATE = Path(__file__).resolve().parents[2] / "launcher" / "evaluate.py"
POLL_S = 0.2
LIMIT_S = 24 * 3600.0  # of one evaluation


@dataclass(frozen=True)
class Asked:
    """What of a run is scored. ``saliency_rows``: of every split, where a run's are defined; 0: no saliency."""

    splits: tuple[str, ...]
    saliency_rows: int

    def options(self, run: Path) -> list[str]:
        """For launcher/evaluate.py."""
        rows = self._saliency_rows(run)
        saliency = ["--saliency", "--saliency-rows", str(rows)] if rows else []
        return ["--split", ",".join(self.splits), *saliency]

    def _saliency_rows(self, run: Path) -> int:
        """None of a run that has no teacher, or whose teacher's saliency is of other tokens. Raises OSError."""
        summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
        # absent: the run did not measure it; null: it is not defined
        is_defined = summary["loyalty"].get(HEADLINE_SL, 0.0) is not None
        return self.saliency_rows if summary["teacher"] is not None and is_defined else 0

    def is_answered(self, run: Path) -> bool:
        """Whether ``run`` has an evaluation of its present model with all of this."""
        try:
            found = json.loads((run / "evaluation.json").read_text(encoding="utf-8"))
            model = found["models"]["student"]["sha256"]
            rows = found["settings"].get("saliency_rows", 0)
            is_whole = all(
                num_predictions(run / found["predictions"][split]["file"]) == found["splits"][split]["rows"]
                for split in self.splits
            )
            wanted = self._saliency_rows(run)
            taught = all(each["sha256"] == digest_of(each["path"]) for each in found["models"]["teachers"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError, UserError):
            return False
        is_same = model == weights_digest(run / "model") and rows == wanted
        return is_whole and taught and is_same


@functools.cache
def digest_of(model: str) -> str:
    """weights_digest of a teacher, also of the hub's: read once for all runs. Raises UserError where there is none."""
    return weights_digest(Path(locate(model, what="teacher")))


def num_predictions(path: Path) -> int:
    """Rows of a file of predictions that is whole, to its last line end; -1 of one that is not. Raises OSError."""
    content = path.read_bytes()
    return content.count(b"\n") - 1 if content.endswith(b"\n") else -1


def evaluate_runs(
    runs: Sequence[Path],
    asked: Asked,
    *,
    parallel: int,
    should_stop: Callable[[], bool],
    say: Callable[[str], None],
) -> None:
    """Return when all have their evaluation. Raises Interrupted; UserError with the first one's words that failed."""
    waiting = [run for run in runs if not asked.is_answered(run)]
    running: dict[Path, tuple[subprocess.Popen[bytes], float]] = {}
    total, failed = len(waiting), []
    try:
        while (waiting or running) and not should_stop():
            while waiting and len(running) < parallel:
                run = waiting.pop(0)
                running[run] = (_start(run, asked), time.monotonic() + LIMIT_S)
            for run, (process, until) in list(running.items()):
                if process.poll() is not None:
                    del running[run]
                    failed += [run] if process.returncode else []
                    what = "not scored" if process.returncode else "scored"
                    say(f"{run}: {what} ({len(waiting) + len(running)} of {total} left)")
                elif time.monotonic() > until:
                    raise UserError(f"{run}: evaluate.py did not end within {LIMIT_S:.0f} s: see {_log(run)}")
            time.sleep(POLL_S)
    finally:
        for process, _ in running.values():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # its files are complete or absent
            process.wait()
    if should_stop() and (waiting or running):
        raise Interrupted("asked to; the same command goes on")
    if failed:
        words = _log(failed[0]).read_text(encoding="utf-8", errors="replace").strip().splitlines() or [""]
        raise UserError(f"{failed[0]} could not be scored: {words[-1]} ({_log(failed[0])})")


def _start(run: Path, asked: Asked) -> subprocess.Popen[bytes]:
    with _log(run).open("wb") as file:
        return subprocess.Popen(
            [sys.executable, str(EVALUATE), str(run), *asked.options(run)],
            stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True,
        )  # fmt: skip


def _log(run: Path) -> Path:
    return run / "logs" / "evaluate.out"

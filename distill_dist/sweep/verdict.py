"""What became of a trial, as its run folder says it: launchers lose exit codes, and a sweep may have died."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from distill_dist.durable import is_locked

State = Literal["waiting", "queued", "running", "stopped", "failed", "done"]


@dataclass(frozen=True)
class Verdict:
    """``stopped`` can be resumed, ``failed`` is not repeated unasked; ``reason`` says why. ``summary`` of one done."""

    state: State
    reason: str = ""
    summary: dict[str, Any] | None = None
    time: float = 0.0  # when the run said so; seconds since 1970


def read_verdict(folder: Path) -> Verdict:
    """Of the run in ``folder``, which need not be there."""
    found = _read(folder / "state.json")
    summary = _read(folder / "summary.json")
    state, when = found.get("state"), float(found.get("time", 0.0))
    if is_under_way(folder):
        return Verdict("running", time=when)
    if state == "done" and summary:
        return Verdict("done", summary=summary, time=when)
    if state in ("stopped", "failed"):
        return Verdict(state, str(found.get("reason", "")), time=when)
    if state == "running":  # nobody holds its lock
        return Verdict("stopped", "it ended without a word", time=when)
    return Verdict("waiting", time=when)


def is_under_way(folder: Path) -> bool:
    """Whether some process, of whichever host, runs in ``folder``."""
    return is_locked(folder / ".lock")


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}

"""Runs as a table: what `launcher/runs.py` prints."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from distill_dist.report.run_record import RunRecord, best_dev, by_number, last_step, read_run

_COLUMNS = ("run", "state", "method", "label", "task", "seed", "best dev", "steps", "age")
_RIGHT = ("seed", "best dev", "steps", "age")
SORTS = ("name", "age", "dev")


def list_runs(paths: Sequence[Path], *, sort: str = "name") -> list[dict[str, Any]]:
    """One entry a run, in the order of ``sort``: by name, the youngest first, or the best on dev first."""
    found = [_entry(read_run(path, whole=False)) for path in paths]
    if sort == "age":
        return sorted(found, key=lambda entry: entry["changed"] or 0.0, reverse=True)
    if sort == "dev":
        # of each task apart: an accuracy on one says nothing beside that on another
        return sorted(found, key=lambda entry: (entry["task"], -_or(entry["best_dev"], -1.0)))
    return sorted(found, key=lambda entry: by_number(entry["run"]))


def _or(value: float | None, other: float) -> float:
    return other if value is None else value


def _entry(record: RunRecord) -> dict[str, Any]:
    return {
        "run": str(record.path),
        "state": record.state,
        "reason": record.reason,
        "method": record.method,
        "label": record.listed_as,
        "task": record.task,
        "seed": record.seed,
        "best_dev": best_dev(record),
        "steps": last_step(record),
        "changed": record.changed or None,
        "problems": record.problems,
    }


def table(entries: Sequence[dict[str, Any]], *, now: float | None = None) -> str:
    """The entries for reading, with what is wrong with broken ones below. Labels only where a run has one."""
    now = time.time() if now is None else now
    rows = [_COLUMNS, *(_cells(entry, now) for entry in entries)]
    shown = [
        place for place, name in enumerate(_COLUMNS) if name != "label" or any(row[place] for row in rows[1:])
    ]
    widths = {place: max(len(row[place]) for row in rows) for place in shown}
    lines = [_line(row, widths) for row in rows]
    for entry in entries:
        said = [*entry["problems"], *([entry["reason"]] if entry["state"] in ("failed", "refused") else [])]
        lines += [f"{_plain(entry['run'])}: {_plain(text)}" for text in said]
    return "\n".join(lines)


def _line(cells: Sequence[str], widths: Mapping[int, int]) -> str:
    """``widths`` of the columns that are shown, by their place."""
    parts = [
        cells[place].rjust(width) if _COLUMNS[place] in _RIGHT else cells[place].ljust(width)
        for place, width in widths.items()
    ]
    return "  ".join(parts).rstrip()


def _cells(entry: dict[str, Any], now: float) -> tuple[str, ...]:
    dev, changed = entry["best_dev"], entry["changed"]
    return (
        _plain(entry["run"]),
        _plain(entry["state"]),
        _plain(entry["method"]),
        "" if entry["label"] == entry["method"] else _plain(entry["label"]),
        _plain(entry["task"]),
        "–" if entry["seed"] is None else str(entry["seed"]),
        "–" if dev is None else f"{dev:.4f}",
        "–" if entry["steps"] is None else f"{entry['steps']:,}",
        "–" if changed is None else age(now - changed),
    )


def age(seconds: float) -> str:
    """`40 s`, `12 min`, `3.5 h`, `9 d`: of the last sign of life."""
    seconds = max(0.0, seconds)
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    if seconds < 36 * 3600:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 86400:.0f} d"


def _plain(text: str) -> str:
    """On one line and without control characters: a file's words must not steer a terminal."""
    shown = " ".join(text.split())
    shown = "".join(letter if letter.isprintable() else "\ufffd" for letter in shown)
    return shown if len(shown) <= 200 else shown[:199] + "…"


def as_json(entries: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The result line: counts of states, and every run."""
    states: dict[str, int] = {}
    for entry in entries:
        states[entry["state"]] = states.get(entry["state"], 0) + 1
    broken = sum(bool(entry["problems"]) for entry in entries)
    found = {"runs": list(entries), "states": states, "broken": broken}
    # a summary may hold NaN, which JSON has no word for
    return json.loads(json.dumps(found), parse_constant=lambda _: None)  # type: ignore[no-any-return]

"""What a study found: one page, one table for reading, one summary."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from distill_dist.durable import write_durable, write_json
from distill_dist.report.collect import Choice, Collected, collect
from distill_dist.report.comparison import Cell, GroupLine, TaskTable
from distill_dist.report.figures import NAMES
from distill_dist.report.page import as_json, render

PAGE, TABLE, SUMMARY = "report.html", "report.md", "summary.json"


def write_report(
    runs: Mapping[str, Sequence[Path]],
    out: Path,
    choice: Choice,
    *,
    command: str,
    more: Mapping[str, Any],
    notes: Mapping[str, str],
    progress: Callable[[str], None],
) -> dict[str, Any]:
    """The page, report.md and summary.json of ``runs`` (by block) in ``out``; returns the summary.

    ``more`` stands in the summary beside the tables: what was chosen, what failed, the budget. ``notes``: below a
    block's table.
    """
    places = {path: block for block, paths in runs.items() for path in paths}
    found = collect(list(places), choice, progress=progress, table_of=places)
    for table, _ in found.tasks:
        table.notes += [notes[table.task]] if table.task in notes else []
    page = render(found, made=time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()), command=command)
    write_durable(out / PAGE, lambda temporary: temporary.write_text(page, encoding="utf-8"))
    text = markdown(found)
    write_durable(out / TABLE, lambda temporary: temporary.write_text(text, encoding="utf-8"))
    summary = {"report": str(out / PAGE), "table": str(out / TABLE), **more, **as_json(found)}
    write_json(out / SUMMARY, summary)
    return summary


def markdown(found: Collected) -> str:
    """A table for each block: means and deviations over seeds, the difference from the baseline and its tests."""
    return "\n\n".join(_table(table) for table, _ in found.tasks) + "\n"


def _table(table: TaskTable) -> str:
    names = [_column(table, column) for column in table.columns]
    against = [f"− {table.baseline.label}", "95 %", "p rows", "p seeds"] if table.baseline else []
    head = [table.task, "seeds", *names, *against]
    lines = [_line(head), _line(["---"] * len(head))]
    lines += [
        _line([*_cells(table, line), *(_against(line) if table.baseline else [])]) for line in table.lines
    ]
    return "\n".join([*lines, *(f"\n{note}" for note in table.notes)])


def _column(table: TaskTable, column: tuple[str, str]) -> str:
    split, metric = column
    return f"{NAMES[metric]} {split}"


def _cells(table: TaskTable, line: GroupLine) -> list[str]:
    seeds = len({run.seed for run in line.group.runs})
    return [line.group.label, str(seeds), *(_cell(line.cells.get(column)) for column in table.columns)]


def _cell(cell: Cell | None) -> str:
    if cell is None:
        return "–"
    return f"{cell.mean:.4f}" if cell.deviation is None else f"{cell.mean:.4f} ± {cell.deviation:.4f}"


def _against(line: GroupLine) -> list[str]:
    found = line.against
    if found is None:
        return [""] * 4
    rows = found.rows
    interval = "–" if rows is None else f"{rows.low:+.4f} to {rows.high:+.4f}"
    return [f"{found.difference:+.4f}", interval, _p(found.rows_p), _p(found.seeds_p)]


def _p(value: float | None) -> str:
    return "–" if value is None else "< 0.001" if value < 0.001 else f"{value:.3f}"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"

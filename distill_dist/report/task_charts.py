"""The pictures that compare the runs of one task."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from distill_dist.report.charts import COLOURS, Chart, Line, bars, dots, lines, scatter
from distill_dist.report.comparison import GroupLine, TaskTable
from distill_dist.report.figures import NAMES, figure
from distill_dist.report.points import Points
from distill_dist.report.run_record import number_at

MOST_ROWS = 30  # of a chart with a row per line of the table


def task_charts(table: TaskTable, points: Mapping[Path, Points]) -> list[Chart]:
    """Every picture that the files have something for; those with a row per line only where there are several."""
    with_figures = [line for line in table.lines if (table.split, table.metric) in line.cells]
    several = len(with_figures) > 1
    found = [
        _results(table, with_figures) if several else None,
        _learning(table, points),
        _loyalty(table, with_figures) if several else None,
        _throughput(table.lines) if several else None,
        _waiting(table.lines) if several else None,
    ]
    return [chart for chart in found if chart is not None]


def _most(title: str, lines: Sequence[object]) -> str:
    return title if len(lines) <= MOST_ROWS else f"{title}, first {MOST_ROWS} of {len(lines)}"


def _results(table: TaskTable, found: Sequence[GroupLine]) -> Chart:
    column = (table.split, table.metric)
    rows = [(line.group.label, line.cells[column].values) for line in found[:MOST_ROWS]]
    mark = next((line.cells[column].mean for line in found if line.group is table.baseline), None)
    name = f"{NAMES[table.metric]} on {table.split}"
    return dots(_most("Results", found), rows, across=f"{name}\na dot a seed, a bar the mean", mark=mark)


def _learning(table: TaskTable, points: Mapping[Path, Points]) -> Chart | None:
    """The metric over steps, means over seeds in a band from the lowest to the highest."""
    split = _followed(table, points)
    tag = f"{split}/{table.metric}"
    named: list[Line] = []
    faint: list[Line] = []
    for line in table.lines:
        curves = [points[run.path].curves[tag] for run in line.group.runs if _has(points, run.path, tag)]
        if not curves:
            continue
        # seeds share their steps; one that stopped early ends the mean
        steps = curves[0][0]
        for other, _ in curves[1:]:
            steps = np.intersect1d(steps, other)
        if not len(steps):
            continue
        values = np.stack([values[np.isin(at, steps)] for at, values in curves])
        target = named if len(named) < len(COLOURS) or line.group is table.baseline else faint
        target.append(
            Line(line.group.label, steps, values.mean(0), values.min(0), values.max(0), target is faint)
        )
    if not named:
        return None
    caption = "Means over seeds, from the lowest to the highest as a band." if _bands(named) else ""
    if faint:
        caption += f" In grey {len(faint)} more, lower in the table."
    up = f"{NAMES[table.metric]} on {split}"
    return lines("Learning", [*faint, *named], across="optimizer step", up=up, caption=caption)


def _followed(table: TaskTable, points: Mapping[Path, Points]) -> str:
    """The table's split, or the one that most runs scored while they trained, where none scored that one."""
    found: Counter[str] = Counter()
    for run in (run for line in table.lines for run in line.group.runs if run.path in points):
        tags = [tag.split("/") for tag in points[run.path].curves]
        found.update(tag[0] for tag in tags if tag[1:] == [table.metric])
    if table.split in found or not found:
        return table.split
    return found.most_common(1)[0][0]


def _has(points: Mapping[Path, Points], path: Path, tag: str) -> bool:
    return path in points and tag in points[path].curves


def _bands(named: Sequence[Line]) -> bool:
    return any(line.low is not None and not np.array_equal(line.low, line.values) for line in named)


def _loyalty(table: TaskTable, found: Sequence[GroupLine]) -> Chart | None:
    groups = []
    for line in found:
        pairs = [
            (loyal, value)
            for run in line.group.runs
            if (loyal := figure(run, table.split, "ll")) is not None
            and (value := figure(run, table.split, table.metric)) is not None
        ]
        if pairs:
            groups.append((line.group.label, [x for x, _ in pairs], [y for _, y in pairs]))
    if not groups:
        return None
    return scatter(
        "Loyalty and quality", groups, across="LL: says what its teacher says", up=NAMES[table.metric]
    )


def _throughput(found: Sequence[GroupLine]) -> Chart | None:
    rows = _means(found, "samples_per_s")
    caption = "Over all students of a run, without evaluation and checkpoints. Machines may differ."
    title = _most("Throughput", rows)
    return bars(title, rows[:MOST_ROWS], across="samples a second", caption=caption) if rows else None


def _waiting(found: Sequence[GroupLine]) -> Chart | None:
    rows = _means(found, "teacher_wait_share")
    if not any(value for _, value in rows):
        return None
    return bars(_most("Waiting for teachers", rows), rows[:MOST_ROWS], across="share of the students' time")


def _means(found: Sequence[GroupLine], name: str) -> list[tuple[str, float]]:
    rows = []
    for line in found:
        values = [number_at(run.summary, "throughput", name) for run in line.group.runs]
        known = [value for value in values if value is not None]
        if known:
            rows.append((line.group.label, sum(known) / len(known)))
    return rows

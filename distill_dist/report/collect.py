"""Everything the page shows, gathered from the run folders."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from distill_dist.errors import UserError
from distill_dist.report.charts import Chart
from distill_dist.report.comparison import TaskTable, compare_task
from distill_dist.report.groups import Group, group_runs, pick_baselines
from distill_dist.report.points import Points, read_points
from distill_dist.report.row_scores import COMMAND
from distill_dist.report.rows_of_snapshot import read_row_map
from distill_dist.report.run_charts import run_charts
from distill_dist.report.run_record import RunRecord, read_run, value_at
from distill_dist.report.run_view import RunView
from distill_dist.report.saliency import read_examples
from distill_dist.report.task_charts import task_charts


@dataclass(frozen=True)
class Choice:
    """What the user chose. ``details``: runs that are shown with their own pictures."""

    baseline: str = ""
    split: str = "dev"
    resamples: int = 10_000
    seed: int = 0
    details: int = 12


@dataclass(frozen=True)
class Collected:
    """``tasks`` with their charts; ``runs`` in the order of the tables, those shown in full marked."""

    choice: Choice
    tasks: list[tuple[TaskTable, list[Chart]]]
    runs: list[RunView]


def collect(
    paths: Sequence[Path],
    choice: Choice,
    *,
    progress: Callable[[str], None],
    table_of: Mapping[Path, str] | None = None,
) -> Collected:
    """Read the runs, compare them, draw. Raises UserError where ``choice`` names a baseline or a split of no run.

    ``table_of``: the table of a run where it is not its task's, say of students of another size.
    """
    records = []
    points: dict[Path, Points] = {}
    for number, path in enumerate(paths, start=1):
        progress(f"reading {number}/{len(paths)}")
        record = read_run(path)
        record.table = (table_of or {}).get(path, "")
        points[path] = read_points(path / "tensorboard", record.problems)
        records.append(record)
    _check_split(records, choice.split)
    groups = group_runs(records)
    baselines = pick_baselines(groups, choice.baseline) if choice.baseline else {}
    tables = []
    for task in dict.fromkeys(group.task for group in groups):
        progress(f"comparing {task}")
        ours = [group for group in groups if group.task == task]
        table = compare_task(
            ours,
            split=choice.split,
            baseline=baselines.get(task),
            resamples=choice.resamples,
            seed=choice.seed,
        )
        if choice.baseline and task not in baselines:
            table.notes.append(f"{choice.baseline} is not among its runs: nothing is compared")
        tables.append((table, task_charts(table, points)))
    return Collected(choice, tables, _views(tables, points, choice, progress))


def _check_split(records: Sequence[RunRecord], split: str) -> None:
    """Raises UserError for one that no run has, but for dev, which every run is scored on."""
    known: set[str] = set()
    scored: set[str] = set()
    for record in records:
        for tree in (record.evaluation, record.summary):
            found = value_at(tree, "splits")
            scored.update(found if isinstance(found, dict) else ())
        for key in ("splits", "hold_out"):
            found = value_at(record.config, "data", key)
            known.update(found if isinstance(found, dict) else ())
    if split in ("dev", *scored):
        return
    if split not in known:
        names = ", ".join(sorted(map(str, known | scored))) or "none yet"
        raise UserError(f"--split {split}: no run here has it (they have {names})")
    done = next((record.path for record in records if record.done), None)
    if done is not None:
        own = " --split train" if split == "train" else ""  # all others are scored together
        raise UserError(f"--split {split}: no run here was scored on it: {COMMAND} {done}{own}")


def _views(
    tables: Sequence[tuple[TaskTable, list[Chart]]],
    points: dict[Path, Points],
    choice: Choice,
    progress: Callable[[str], None],
) -> list[RunView]:
    ordered: list[tuple[TaskTable, Group, RunRecord]] = [
        (table, line.group, run) for table, _ in tables for line in table.lines for run in line.group.runs
    ]
    full = _in_full([table for table, _ in tables], choice.details)
    found: list[RunView] = []
    for number, (table, group, run) in enumerate(ordered, start=1):
        view = RunView(run, f"run-{number}", group, table.split, table.metric, run.path in full)
        if view.full:
            progress(f"drawing {len(found) + 1}/{len(ordered)}")
            view.charts = run_charts(points[run.path], read_row_map(run.path, run.problems))
            view.examples = read_examples(run)
        found.append(view)
    return found


def _in_full(tables: Sequence[TaskTable], count: int) -> set[Path]:
    """The first run of every line, best lines first, then the second of every line, and so on up to ``count``."""
    lines = [line for table in tables for line in table.lines]
    longest = max((len(line.group.runs) for line in lines), default=0)
    order = [
        line.group.runs[place].path
        for place in range(longest)
        for line in lines
        if place < len(line.group.runs)
    ]
    return set(order[:count])

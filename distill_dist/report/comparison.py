"""The table of one task: a line per group of runs, means over seeds, and differences from a baseline."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from distill_dist.report.figures import LOYALTY, figure, main_metric, splits_of
from distill_dist.report.groups import Group, differences
from distill_dist.report.row_scores import COMMAND, data_of, find_predictions, predictions_file, row_scores
from distill_dist.report.run_record import RunRecord
from distill_dist.report.statistics import (
    Difference,
    Scored,
    SeedTest,
    deviation,
    holm,
    paired_bootstrap,
    seed_test,
)

LEVEL = 0.05
_OF_COMMIT = 12  # characters
_MOST_VERSIONS = 5  # that a note names
_MOST_COMMANDS = 10
SAME_MODEL = 0.005  # between a run's figure and its predictions': a device or a kernel may turn a few rows


@dataclass(frozen=True)
class Cell:
    """Of one metric over a group's seeds: mean, standard deviation (None for one seed), the number of seeds."""

    mean: float
    deviation: float | None
    seeds: int
    values: tuple[float, ...]


@dataclass
class Against:
    """How a group differs from the baseline on the task's metric. p values are adjusted for their number (Holm)."""

    difference: float
    rows: Difference | None = None
    rows_missing: str = ""  # why there is no comparison row by row
    seeds: SeedTest | None = None
    fields: list[tuple[str, str, str]] = field(default_factory=list)  # (name, here, in the baseline)
    rows_p: float | None = None
    seeds_p: float | None = None

    @property
    def verdict(self) -> str:
        """`better`, `worse`, `not shown` (some test finds no difference), or `untested`."""
        tests = [p for p in (self.rows_p, self.seeds_p) if p is not None]
        if not tests:
            return "untested"
        if all(p < LEVEL for p in tests) and self.difference:
            return "better" if self.difference > 0 else "worse"
        return "not shown"

    @property
    def basis(self) -> str:
        """The tests that the verdict stands on: where no difference is shown, those that do not show it."""
        tests = {"rows": self.rows_p, "seeds": self.seeds_p}
        made = {name: p for name, p in tests.items() if p is not None}
        silent = [name for name, p in made.items() if p >= LEVEL]
        return ", ".join(silent or made)


@dataclass
class GroupLine:
    """One line: cells by (split, metric)."""

    group: Group
    cells: dict[tuple[str, str], Cell]
    against: Against | None = None  # None: the baseline itself, or no baseline


@dataclass
class TaskTable:
    """All lines of a task, best first on (``split``, ``metric``)."""

    task: str
    split: str
    metric: str
    columns: list[tuple[str, str]]
    lines: list[GroupLine]
    baseline: Group | None = None
    unfinished: int = 0  # runs that have no figures yet
    notes: list[str] = field(default_factory=list)


def compare_task(
    groups: Sequence[Group], *, split: str, baseline: Group | None, resamples: int, seed: int
) -> TaskTable:
    """The table of the groups of one task."""
    runs = [run for group in groups for run in group.runs]
    metric = main_metric(runs, split)
    columns = [(split, metric)]
    if metric != "accuracy":
        columns.append((split, "accuracy"))
    columns += [(other, metric) for other in splits_of(runs) if other != split]
    columns += [(split, name) for name in (*LOYALTY, "ece", "loss")]
    lines = [
        GroupLine(group, {column: cell for column in columns if (cell := _cell(group, *column)) is not None})
        for group in groups
    ]
    columns = [column for column in columns if any(column in line.cells for line in lines)]
    lines.sort(key=lambda line: _place(line.cells.get((split, metric))))
    table = TaskTable(groups[0].task, split, metric, columns, lines, baseline)
    table.unfinished = sum(figure(run, split, metric) is None for run in runs)
    table.notes += _other_versions(runs)
    if baseline is not None:
        _against_all(table, baseline, resamples=resamples, seed=seed)
    return table


def _other_versions(runs: Sequence[RunRecord]) -> list[str]:
    """A note on every package, and on the code itself, of which the runs that have figures had several versions."""
    found = []
    with_figures = [run.versions for run in runs if run.done and run.versions]
    for name in dict.fromkeys(name for versions in with_figures for name in versions):
        counts = Counter(versions[name][:_OF_COMMIT] for versions in with_figures if name in versions)
        if len(counts) > 1:
            said = ", ".join(f"{version} ({count})" for version, count in counts.most_common(_MOST_VERSIONS))
            more = f" and {len(counts) - _MOST_VERSIONS} others" if len(counts) > _MOST_VERSIONS else ""
            what = "commits of the code" if name == "commit" else f"versions of {name}"
            found.append(f"its runs were made with several {what}: {said}{more}")
    return found


def _more(paths: Sequence[Path]) -> str:
    return f"; and {len(paths) - _MOST_COMMANDS} more" if len(paths) > _MOST_COMMANDS else ""


def _place(cell: Cell | None) -> tuple[bool, float]:
    """Best first, lines without the metric last."""
    return (cell is None, 0.0 if cell is None else -cell.mean)


def _cell(group: Group, split: str, metric: str) -> Cell | None:
    known = {run.path: value for run in group.runs if (value := figure(run, split, metric)) is not None}
    by_seed = group.by_seed(known)
    # a run that no file knows the seed of counts as a seed of its own
    values = [
        *by_seed.values(),
        *(known[run.path] for run in group.runs if run.seed is None and run.path in known),
    ]
    if not values:
        return None
    return Cell(float(np.mean(values)), deviation(values), len(values), tuple(values))


def _against_all(table: TaskTable, baseline: Group, *, resamples: int, seed: int) -> None:
    column = (table.split, table.metric)
    theirs = _RowsOfGroup(baseline, *column)
    base = next(line for line in table.lines if line.group is baseline)
    if column not in base.cells:
        table.notes.append(f"the baseline {baseline.label} has no {table.metric} on {table.split} yet")
        return
    if theirs.missing:
        table.notes.append(f"no comparison row by row: {theirs.missing}")
    runs = [run for line in table.lines for run in line.group.runs if figure(run, *column) is not None]
    bare = [run.path for run in runs if predictions_file(run, table.split) is None]
    if len(bare) > 1:
        named = "; ".join(f"{COMMAND} {path}" for path in bare[:_MOST_COMMANDS])
        table.notes.append(f"{len(bare)} runs have no predictions on {table.split}: {named}{_more(bare)}")
    for line in table.lines:
        if line.group is baseline or column not in line.cells:
            continue
        found = Against(line.cells[column].mean - base.cells[column].mean)
        found.fields = differences(line.group, baseline)
        found.seeds = seed_test(_by_seed(line.group, *column), _by_seed(baseline, *column))
        ours = _RowsOfGroup(line.group, *column)
        found.rows_missing = theirs.missing or ours.missing or ours.unlike(theirs)
        if not found.rows_missing:
            found.rows = paired_bootstrap(ours.scores, theirs.scores, resamples=resamples, seed=seed)
        line.against = found
    _adjust([line.against for line in table.lines if line.against is not None])


def _adjust(found: Sequence[Against]) -> None:
    with_rows = [each for each in found if each.rows is not None]
    for each, p in zip(with_rows, holm([one.rows.p for one in with_rows if one.rows]), strict=True):
        each.rows_p = p
    with_seeds = [each for each in found if each.seeds is not None]
    for each, p in zip(with_seeds, holm([one.seeds.p for one in with_seeds if one.seeds]), strict=True):
        each.seeds_p = p


def _by_seed(group: Group, split: str, metric: str) -> dict[int, float]:
    known: dict[Path, float] = {}
    for run in group.runs:
        if (value := figure(run, split, metric)) is not None:
            known[run.path] = value
    return group.by_seed(known)


class _RowsOfGroup:
    """The group's runs row by row, where all that have a figure have predictions as well."""

    def __init__(self, group: Group, split: str, metric: str) -> None:
        self._by_seed: dict[int | Path, list[Scored]] = {}
        self.labels: np.ndarray | None = None
        self.data = ""
        self.missing = ""  # why the group cannot be compared row by row
        for run in group.runs:
            value = figure(run, split, metric)
            if value is None:
                continue
            found = find_predictions(run, split)
            scores = None if found is None else row_scores(found, metric)
            if found is None or scores is None:
                self.missing = f"{run.path} has no predictions on {split}: {COMMAND} {run.path}"
                return
            if abs(scores.value - value) > SAME_MODEL:
                self.missing = f"the predictions of {run.path} are of another model: {COMMAND} {run.path}"
                return
            if self.labels is not None and not self._same(found.labels_N, data_of(run)):
                self.missing = f"the runs of {group.label} were scored on other rows"
                return
            self.labels, self.data = found.labels_N, data_of(run)
            # a run that no file knows the seed of counts as a seed of its own
            self._by_seed.setdefault(run.path if run.seed is None else run.seed, []).append(scores)
        if not self._by_seed:
            self.missing = f"{group.label} has no figures"

    @property
    def scores(self) -> list[list[Scored]]:
        """Of each seed, those of its runs."""
        return list(self._by_seed.values())

    def _same(self, labels: np.ndarray, data: str) -> bool:
        return self.data == data and np.array_equal(self.labels, labels) if self.labels is not None else True

    def unlike(self, other: _RowsOfGroup) -> str:
        """Why two groups that have rows cannot be compared; "" when they can."""
        assert other.labels is not None
        return "" if self._same(other.labels, other.data) else "scored on other rows than the baseline"

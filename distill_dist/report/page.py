"""The page itself: what the files say, put into the template. One file, no network, no script but its own."""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distill_dist.report.charts import Chart
from distill_dist.report.collect import Collected
from distill_dist.report.comparison import Against, Cell, GroupLine, TaskTable
from distill_dist.report.figures import NAMES
from distill_dist.report.run_record import value_at
from distill_dist.report.run_view import RunView

_TEMPLATES = Path(__file__).parent / "templates"
_VERDICTS = {
    "better": "better",
    "worse": "worse",
    "not shown": "no difference shown",
    "untested": "not tested",
}


@dataclass(frozen=True)
class TaskView:
    """One task's table and charts."""

    anchor: str
    table: TaskTable
    charts: list[Chart]


def render(found: Collected, *, made: str, command: str) -> str:
    """The whole page as HTML. ``made``: when, for reading; ``command``: that made it."""
    import jinja2  # of the extra `report`

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,  # texts of data, names of folders and error messages are all other people's
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        picture=_picture, cell=_cell, number=_number, share=_share, p_value=_p_value, verdict=_verdict
    )
    script, style = (
        (_TEMPLATES / name).read_text(encoding="utf-8").strip() for name in ("page.js", "page.css")
    )
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    from markupsafe import Markup  # comes with jinja2

    tasks = [
        TaskView(f"task-{number}", table, charts)
        for number, (table, charts) in enumerate(found.tasks, start=1)
    ]
    return environment.get_template("page.html").render(
        found=found,
        tasks=tasks,
        made=made,
        command=command,
        script=Markup(script),
        style=Markup(style),
        script_digest=digest,
        names=NAMES,
        anchors={view.run.path: view.anchor for view in found.runs},
        column_name=_column_name,
        with_problems=[view for view in found.runs if view.problems],
        teachers=_teachers,
        selected=_selected(found),
    )


def _selected(found: Collected) -> str:
    """On which split the runs chose their epochs."""
    splits = {str(value_at(view.run.config, "evaluate", "select_on") or "dev") for view in found.runs}
    names = " or ".join(sorted(splits)) or "dev"
    return f"Each run kept its best epoch on {names}, so its figure there is a little high."


def _picture(chart: Chart) -> str:
    """An image, not inline SVG: ids of charts do not meet, and an image runs no script."""
    return "data:image/svg+xml;base64," + base64.b64encode(chart.svg.encode()).decode()


def _column_name(table: TaskTable, column: tuple[str, str]) -> str:
    split, metric = column
    name = NAMES[metric]
    return name if split == table.split else f"{name}, {split}"


def _number(value: float | None, digits: int = 4) -> str:
    if value is None:
        return "–"
    return f"{value:,}" if isinstance(value, int) else f"{value:.{digits}f}"


def _share(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f} %"


def _cell(cell: Cell | None) -> str:
    if cell is None:
        return "–"
    return _number(cell.mean) if cell.deviation is None else f"{cell.mean:.4f} ± {cell.deviation:.4f}"


def _p_value(value: float | None) -> str:
    if value is None:
        return "–"
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _verdict(found: Against) -> str:
    return _VERDICTS[found.verdict]


def _teachers(table: TaskTable, views: list[RunView]) -> list[tuple[float, int]]:
    """(a teacher's metric, how many runs have it), most runs first."""
    counts: dict[float, int] = {}
    for view in views:
        if view.group.task == table.task and view.teacher is not None:
            counts[view.teacher] = counts.get(view.teacher, 0) + 1
    return sorted(counts.items(), key=lambda item: -item[1])


def as_json(found: Collected) -> dict[str, Any]:
    """The tables as the launcher prints them."""
    return {
        "runs": len(found.runs),
        "problems": sum(len(view.problems) for view in found.runs),
        "tasks": {table.task: _table_json(table) for table, _ in found.tasks},
    }


def _table_json(table: TaskTable) -> dict[str, Any]:
    return {
        "split": table.split,
        "metric": table.metric,
        "baseline": None if table.baseline is None else table.baseline.label,
        "lines": [_line_json(table, line) for line in table.lines],
    }


def _line_json(table: TaskTable, line: GroupLine) -> dict[str, Any]:
    found: dict[str, Any] = {"label": line.group.label, "runs": len(line.group.runs)}
    cell = line.cells.get((table.split, table.metric))
    found |= {
        "seeds": 0 if cell is None else cell.seeds,
        "mean": cell and cell.mean,
        "deviation": cell and cell.deviation,
    }
    if (against := line.against) is not None:
        rows = against.rows
        found |= {
            "difference": against.difference,
            "interval": None if rows is None else [rows.low, rows.high],
            "p_rows": against.rows_p,
            "p_seeds": against.seeds_p,
            "verdict": against.verdict,
            "verdict_by": against.basis,
            "differs_in": [name for name, _, _ in against.fields],
        }
    return found

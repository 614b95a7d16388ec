"""One run as the page shows it."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field
from typing import Any

from distill_dist.config.fields import schema_fields
from distill_dist.report.charts import Chart
from distill_dist.report.figures import HEADLINE_SL, figure, interval, pair, teacher_figure
from distill_dist.report.groups import Group, flatten, said_fields
from distill_dist.report.row_scores import COMMAND
from distill_dist.report.run_record import RunRecord, last_step, number_at, value_at
from distill_dist.report.saliency import Examples

_PLACES = ("run_dir",)  # said elsewhere


@dataclass
class RunView:
    """``charts`` and ``examples`` only where the run is shown in full."""

    run: RunRecord
    anchor: str
    group: Group
    split: str
    metric: str
    full: bool
    charts: list[Chart] = field(default_factory=list)
    examples: Examples | None = None

    @property
    def problems(self) -> list[str]:
        """What of its files could not be read."""
        return self.run.problems

    @property
    def name(self) -> str:
        """The folder, and the one above it, which alone are often the same for many runs."""
        return "/".join(self.run.path.parts[-2:])

    def figure(self, name: str) -> float | None:
        """Of the student on the page's split."""
        return figure(self.run, self.split, name)

    @property
    def interval(self) -> tuple[float, float] | None:
        """Of the task's metric over rows."""
        return interval(self.run, self.split, self.metric)

    @property
    def teacher(self) -> float | None:
        """The teacher's metric."""
        return teacher_figure(self.run, self.split, self.metric)

    def throughput(self, name: str) -> float | None:
        """Of the summary."""
        return number_at(self.run.summary, "throughput", name)

    @property
    def steps(self) -> int | None:
        """So far."""
        return last_step(self.run)

    @property
    def parameters(self) -> float | None:
        """Of the student."""
        return number_at(self.run.summary, "student", "parameters")

    @property
    def command(self) -> str:
        """As it was typed; "" where the run did not record it."""
        return shlex.join(self.run.command)

    @property
    def again(self) -> str:
        """What runs the same resolved configuration once more, into a folder beside this one."""
        path = self.run.path
        beside = shlex.quote(f"run_dir={path.with_name(f'{path.name}-again')}")
        script = f"launcher/train.py --config {shlex.quote(str(path / 'config.yaml'))} {beside}"
        students = number_at(self.run.summary, "world", "students")
        teachers = number_at(self.run.config, "cluster", "teachers") or 0.0
        if students is None or students + teachers < 2:
            return f"python {script}"
        return f"deepspeed --num_gpus {students + teachers:.0f} {script}"

    @property
    def hints(self) -> list[tuple[str, str]]:
        """(what is missing, the command that makes it), for a run that is done."""
        if not self.run.done:
            return []
        folder = shlex.quote(str(self.run.path))
        found = []
        if not self.run.evaluation:
            has_saliency = number_at(self.run.summary, "loyalty", HEADLINE_SL) is not None
            saliency = " --saliency" if has_saliency else ""
            # perturbed tokens are no tokens of a teacher that reads its own
            consistency = "" if value_at(self.run.config, "data", "teacher_tokenizer") else " --consistency"
            command = f"{COMMAND} {folder}{saliency}{consistency}"
            found.append(("Intervals, and comparisons row by row", command))
        if self.full and self.examples is None and self.teacher is not None:
            found.append(("Saliency examples", f"python launcher/report.py {folder} --saliency 8"))
        return found

    @property
    def measures(self) -> list[tuple[str, float, tuple[float, float] | None]]:
        """(name, value, 95 % interval) of everything that evaluate.py found on the split."""
        tree = value_at(self.run.evaluation, "splits", self.split)
        limits = flatten(value_at(tree, "intervals") or {})
        found = []
        for name, value in flatten(tree if isinstance(tree, dict) else {}).items():
            if not name.startswith("intervals.") and isinstance(value, int | float):
                found.append((name, value, pair(limits.get(name))))
        return found

    @property
    def settings(self) -> dict[str, Any]:
        """Fields of the resolved configuration that are not at the schema's default."""
        known = schema_fields()
        return {
            key: value
            for key, value in said_fields(self.run.config).items()
            if key not in _PLACES and not (key in known and _same(known[key].default, value))
        }

    @property
    def alignment(self) -> str:
        """Route and reason, where gradients were matched."""
        route = value_at(self.run.summary, "alignment", "route")
        return "" if route is None else f"{route}: {value_at(self.run.summary, 'alignment', 'reason')}"


def _same(default: Any, value: Any) -> bool:
    return (list(default) if isinstance(default, tuple) else default) == value

"""What a task's rows look like: columns of its known layouts, class names in order, metric."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

from distill_dist.config.schema_data import DataConfig
from distill_dist.errors import UserError


@dataclass(frozen=True)
class Layout:
    """Names of the columns: one or two of text, one of the label, and that of the source if there is one."""

    texts: tuple[str, ...]
    label: str
    source: str = ""

    @property
    def columns(self) -> tuple[str, ...]:
        """All columns that a row must have."""
        return (*self.texts, self.label, *((self.source,) if self.source else ()))

    def parts(self, values: Sequence[Any]) -> tuple[tuple[Any, ...], Any, tuple[Any, ...]]:
        """(texts, label, source: () without its column) out of the values of ``columns``."""
        after = len(self.texts)
        return tuple(values[:after]), values[after], tuple(values[after + 1 :])


@dataclass(frozen=True)
class Task:
    """``layouts`` in order of preference; ``labels`` in the order of class numbers.

    ``metric`` is the headline: `accuracy`, `f1` of class 1, or `matthews` (correlation).
    """

    layouts: tuple[Layout, ...]
    labels: tuple[str, ...]
    metric: str = "accuracy"


# The first layout is the hub's (nyu-mll/glue), the second that of the official TSV files where they differ.
# The order of the labels is the hub's.
TASKS = {
    "cola": Task((Layout(("sentence",), "label"),), ("unacceptable", "acceptable"), "matthews"),
    "sst2": Task((Layout(("sentence",), "label"),), ("negative", "positive")),
    "qqp": Task(
        (
            Layout(("question1", "question2"), "label"),
            Layout(("question1", "question2"), "is_duplicate"),
        ),
        ("not_duplicate", "duplicate"),
        "f1",
    ),
    "mnli": Task(
        (
            Layout(("premise", "hypothesis"), "label"),
            Layout(("sentence1", "sentence2"), "gold_label"),
        ),
        ("entailment", "neutral", "contradiction"),
    ),
    "qnli": Task((Layout(("question", "sentence"), "label"),), ("entailment", "not_entailment")),
}


def resolve_task(config: DataConfig) -> Task:
    """The task of ``config`` with the user's own columns and labels; UserError if something is missing."""
    if config.source == "synthetic_nli":
        return _synthetic_task(config)
    if len(config.text_columns) > 2:
        raise UserError(f"data.text_columns {list(config.text_columns)}: a row has one or two texts")
    if config.task == "custom":
        missing = [key for key in ("text_columns", "label_column", "labels") if not getattr(config, key)]
        if missing:
            raise UserError(
                f"data.task: custom needs {', '.join(f'data.{key}' for key in missing)} "
                f"(or name the task: {', '.join(TASKS)})"
            )
        known = Task((Layout(config.text_columns, config.label_column),), ())
    else:
        known = TASKS[config.task]
    labels = config.labels or known.labels
    _check_labels(labels, known.metric)
    return Task(_own_layouts(config, known.layouts), labels, known.metric)


def _own_layouts(config: DataConfig, known: tuple[Layout, ...]) -> tuple[Layout, ...]:
    """The layouts under the user's own names, without those in which the label is a text at once."""
    layouts = [
        Layout(config.text_columns or layout.texts, config.label_column or layout.label) for layout in known
    ]
    apart = [layout for layout in layouts if layout.label not in layout.texts]
    if not apart:
        raise UserError(f"data.label_column {layouts[0].label!r} is one of the text columns: name another")
    taken = {name for layout in apart for name in layout.columns}
    if config.source_column in taken:
        raise UserError(
            f"data.source_column {config.source_column!r} is a column of texts or the label: name another "
            "(curriculum.stratify: label needs none)"
        )
    return tuple(dict.fromkeys(replace(layout, source=config.source_column) for layout in apart))


def _check_labels(labels: tuple[str, ...], metric: str) -> None:
    shown = f"data.labels {list(labels)}"
    if len(labels) < 2 or len(set(labels)) < len(labels):
        raise UserError(f"{shown}: at least two different class names are needed")
    if any(label != label.strip() for label in labels):
        raise UserError(f"{shown}: a name has blanks around it, which labels of rows lose: take them away")
    if metric == "f1" and len(labels) != 2:
        raise UserError(f"{shown}: the task's metric is F1, which needs two; take data.task: custom for more")


def choose_layout(layouts: tuple[Layout, ...], columns: Collection[str]) -> Layout | None:
    """The first layout whose columns all stand in ``columns``."""
    return next((layout for layout in layouts if set(layout.columns) <= set(columns)), None)


def describe_missing(layouts: tuple[Layout, ...], columns: Collection[str]) -> str:
    """What to tell the owner of a file without the columns of any layout."""
    wanted = " or ".join(", ".join(repr(name) for name in layout.columns) for layout in layouts)
    return f"missing column: needs {wanted}; has {', '.join(repr(name) for name in columns) or 'none'}"


def require_layout(layouts: tuple[Layout, ...], columns: Collection[str], place: str) -> Layout:
    """As :func:`choose_layout`; UserError naming ``place`` if there is none, or a column stands twice."""
    layout = choose_layout(layouts, columns)
    if layout is None:
        remedy = "Set data.text_columns and data.label_column"
        if layouts[0].source:
            remedy = "Set data.text_columns, data.label_column and data.source_column"
        raise UserError(f"{place}: {describe_missing(layouts, columns)}. {remedy}")
    doubled = [name for name in layout.columns if list(columns).count(name) > 1]
    if doubled:
        raise UserError(f"{place}: two columns are called {doubled[0]!r}: rename the one that is not meant")
    return layout


def _synthetic_task(config: DataConfig) -> Task:
    mnli = TASKS["mnli"]
    if config.task not in ("custom", "mnli"):
        raise UserError(
            f"data.task: {config.task} does not fit data.source: synthetic_nli (leave it out, or mnli)"
        )
    for key in ("text_columns", "label_column", "labels", "source_column"):
        if getattr(config, key):
            raise UserError(f"data.{key} has no meaning for data.source: synthetic_nli: leave it out")
    return Task(mnli.layouts[:1], mnli.labels)

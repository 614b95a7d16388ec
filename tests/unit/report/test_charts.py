"""Charts are well-formed SVG whatever a label holds, the same bytes for the same numbers, and drop nothing."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from distill_dist.report import charts, task_charts
from distill_dist.report.charts import MOST_POINTS, Chart, Line
from distill_dist.report.collect import Choice, collect
from distill_dist.report.points import Points, read_points
from distill_dist.report.rows_of_snapshot import read_row_map
from distill_dist.report.run_charts import run_charts
from distill_dist.report.run_record import find_runs
from report.run_cases import HOSTILE, write_many, write_run

LABELS = ("_hidden", "$x$ and $", "正面 \x00\x0b\ud7ff", HOSTILE, "a" * 100, "\n")


def texts(chart: Chart) -> list[str]:
    tree = ElementTree.fromstring(chart.svg)
    assert tree.tag == "{http://www.w3.org/2000/svg}svg"
    assert tree.get("viewBox")
    return [element.text or "" for element in tree.iter("{http://www.w3.org/2000/svg}text")]


def test_labels_of_any_kind() -> None:
    x = np.arange(5)
    drawn = charts.lines("t", [Line(label, x, x.astype(float)) for label in LABELS], across="step", up="loss")
    shown = texts(drawn)
    assert {"hidden", "$x$ and $", "a" * 37 + "…", "?"} <= {text.strip() or "?" for text in shown}
    assert any("<script>" in text for text in shown)  # as a text, not as an element
    assert "<script" not in drawn.svg
    rows = [(label, [0.1, 0.3]) for label in LABELS]
    assert "hidden" in texts(charts.dots("t", rows, across="accuracy", mark=0.2))
    assert "hidden" in texts(charts.bars("t", [(label, 1.0) for label in LABELS], across="rows"))
    groups = [(label, [0.1], [0.2]) for label in LABELS * 3]
    assert "hidden" in texts(charts.scatter("t", groups, across="x", up="y"))


def test_the_same_numbers_give_the_same_bytes() -> None:
    series = [Line("a", np.arange(9), np.arange(9.0)), Line("b", np.arange(9), np.ones(9), faint=True)]
    first, again = (charts.lines("t", series, across="x", up="y").svg for _ in range(2))
    assert first == again


def test_long_curves_are_thinned_to_means_of_neighbours() -> None:
    steps, values = np.arange(1_000_003), np.ones(1_000_003)
    values[500_000] = 1e6
    thin_steps, thin_values = charts._thinned(steps, values)
    assert len(thin_steps) == len(thin_values) <= MOST_POINTS
    every = -(-len(steps) // MOST_POINTS)
    assert thin_values.max() == pytest.approx(1 + (1e6 - 1) / every)
    assert thin_steps[0] == (every - 1) / 2
    short = charts._thinned(steps[:MOST_POINTS], values[:MOST_POINTS])
    assert short[0].tolist() == steps[:MOST_POINTS].tolist()


def test_a_run_with_everything_has_every_picture(tmp_path: Path) -> None:
    run = write_run(tmp_path / "r", curriculum=True)
    drawn = run_charts(read_points(run / "tensorboard", []), read_row_map(run, []))
    assert [chart.title for chart in drawn] == [
        "Loss terms", "Evaluation", "Throughput", "Teachers", "Confidence", "Reliance", "Pacing", "Exposure",
        "Classes in the pool", "Re-sorting", "Rows: sure or shaky", "Forgotten",
    ]  # fmt: skip
    for chart in drawn:
        assert texts(chart)
    exposure = next(chart for chart in drawn if chart.title == "Exposure")
    assert "0 to 1.90 times" in exposure.caption  # decile 1 in the last epoch: 1 − 1/10 + 3/3


def test_without_a_teacher_there_is_no_picture_of_one() -> None:
    steps = np.arange(3)
    curves = {"student_0/teacher_wait_share": (steps, np.zeros(3)), "dev/accuracy": (steps, np.zeros(3))}
    assert [chart.title for chart in run_charts(Points(curves), None)] == ["Evaluation"]


def test_a_run_with_nothing_has_none() -> None:
    assert run_charts(Points(), None) == []


@pytest.mark.parametrize("split", ["dev", "held_out"])
def test_learning_is_shown_on_a_split_that_was_scored_while_training(tmp_path: Path, split: str) -> None:
    """Of rows that are only scored at the end there is no curve."""
    write_many(tmp_path, seeds=2, methods={"kd": 0.8, "gkd": 0.88})
    found = collect(find_runs([tmp_path]), Choice(baseline="kd", split="dev"), progress=lambda text: None)
    (table, _), *_ = found.tasks
    points = {
        run.path: read_points(run.path / "tensorboard", []) for line in table.lines for run in line.group.runs
    }
    drawn = task_charts._learning(replace(table, split=split), points)
    assert drawn is not None
    assert "accuracy on dev" in texts(drawn)

"""The pictures of one run: learning, throughput, and its curriculum."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from distill_dist.report.charts import Chart, Line, bars, heat, lines, stairs
from distill_dist.report.points import Histogram, Points
from distill_dist.report.rows_of_snapshot import BINS, RowMap

_STEP = "optimizer step"
_TERMS = "loss/"
_DECILE = "exposure/decile_"


def run_charts(points: Points, rows: RowMap | None) -> list[Chart]:
    """Every picture that the run's files have something for."""
    found = [
        _terms(points),
        _splits(points),
        _speed(points),
        _wait(points),
        _confidence(points),
        _reliance(points),
        _pool(points),
        _exposure(points),
        _classes(points),
        _movement(points),
    ]
    return [chart for chart in [*found, *_of_rows(rows)] if chart is not None]


def _named(points: Points, tags: Sequence[str], strip: str = "") -> list[Line]:
    return [Line(tag.removeprefix(strip), *points.curves[tag]) for tag in tags if tag in points.curves]


def _terms(points: Points) -> Chart | None:
    """Each term over its own first value, since a weight of 100 stands before one and none before another."""
    series = []
    for line in _named(points, sorted(tag for tag in points.curves if tag.startswith(_TERMS)), _TERMS):
        first = next((value for value in line.values.tolist() if value), None)
        if first is not None:
            series.append(Line(f"{line.label}, from {first:.3g}", line.steps, line.values / first))
    caption = "Each over its first value, before its weight."
    return (
        lines("Loss terms", series, across=_STEP, up="share of its first", caption=caption)
        if series
        else None
    )


def _splits(points: Points) -> Chart | None:
    kept = ("accuracy", "f1", "matthews", "ll", "pl")
    tags = sorted(tag for tag in points.curves if tag.partition("/")[2] in kept)
    series = _named(points, tags)
    return lines("Evaluation", series, across=_STEP, up="") if series else None


def _speed(points: Points) -> Chart | None:
    series = _named(points, ["throughput/samples_per_s"])
    return lines("Throughput", series, across=_STEP, up="samples a second") if series else None


def _wait(points: Points) -> Chart | None:
    tags = [tag for tag in sorted(points.curves) if tag.endswith(("/teacher_wait_share", "/hit_share"))]
    series = [line for line in _named(points, tags) if line.values.any()]  # without a teacher all are 0
    caption = "Share of the students' time that waited for signals, and of the rows that a cache had."
    return lines("Teachers", series, across=_STEP, up="share", caption=caption) if series else None


def _confidence(points: Points) -> Chart | None:
    caption = "Share of the rows, darker for more, when each epoch began; up is surer."
    return _over_epochs("Confidence", points.histograms.get("curriculum/confidence"), "confidence", caption)


def _reliance(points: Points) -> Chart | None:
    caption = "Share of the rows: how far each listens to the teacher (λ), when each epoch began."
    return _over_epochs("Reliance", points.histograms.get("curriculum/reliance"), "λ", caption)


def _over_epochs(title: str, found: Sequence[Histogram] | None, up: str, caption: str) -> Chart | None:
    kept = [each for each in found or () if each.counts.sum() > 0]
    if not kept:
        return None
    edges = kept[-1].edges
    kept = [each for each in kept if len(each.edges) == len(edges) and np.allclose(each.edges, edges)]
    shares = np.stack([each.counts / each.counts.sum() for each in kept], axis=1)
    return heat(
        title,
        shares,
        x_edges=np.arange(len(kept) + 1) - 0.5,
        y_edges=edges,
        across="at step",
        up=up,
        columns=[f"{each.step:,}" for each in kept],
        shade=np.sqrt,  # the few rows in the middle would vanish beside those at the ends
        caption=caption,
    )


def _pool(points: Points) -> Chart | None:
    tag = "curriculum/admitted_share"
    if tag not in points.curves:
        return None
    return stairs("Pacing", *points.curves[tag], across=_STEP, up="share of rows admitted")


def _exposure(points: Points) -> Chart | None:
    tags = sorted(tag for tag in points.curves if tag.startswith(_DECILE))
    if len(tags) < 2:
        return None
    steps = sorted({step for tag in tags for step in points.curves[tag][0].tolist()})
    times = np.zeros((len(tags), len(steps)))
    for place, tag in enumerate(tags):
        known = dict(zip(*(each.tolist() for each in points.curves[tag]), strict=True))
        times[place] = [known.get(step, 0.0) for step in steps]
    return heat(
        "Exposure",
        times,
        x_edges=np.arange(len(steps) + 1) - 0.5,
        y_edges=np.arange(len(tags) + 1) + 0.5,
        across="epoch that began at step",
        up="decile of difficulty",
        columns=[f"{step:,}" for step in steps],
        caption=f"How often a row is served in the epoch, darker for more: 0 to {times.max():.2f} times.",
    )


def _classes(points: Points) -> Chart | None:
    series = _named(points, sorted(tag for tag in points.curves if tag.startswith("admitted/")), "admitted/")
    return lines("Classes in the pool", series, across=_STEP, up="share") if series else None


def _movement(points: Points) -> Chart | None:
    tags = ["curriculum/moved_share", "curriculum/rank_correlation"]
    series = _named(points, tags, "curriculum/")
    caption = "Rows in another decile of difficulty than an epoch before, and the correlation of the ranks."
    return lines("Re-sorting", series, across=_STEP, up="", caption=caption) if series else None


def _of_rows(rows: RowMap | None) -> list[Chart]:
    if rows is None:
        return []
    unit = np.linspace(0, 1, BINS + 1)
    sampled = "" if rows.rows == rows.of else f" of {rows.of:,}, whole shards at equal distances"
    where = f"{rows.name}, step {rows.step:,}: {rows.rows:,} rows{sampled}"
    found = [
        heat(
            "Rows: sure or shaky",
            rows.counts,
            x_edges=unit,
            y_edges=unit / 2,
            across="mean p(true class) over epochs",
            up="standard deviation",
            shade=np.log1p,
            caption=f"{where}. Left below: stayed wrong, perhaps mislabelled; right below: easy; above: undecided.",
        )
    ]
    if len(rows.forgotten) > 1:
        shown = rows.forgotten[:10]
        labels = [(f"{times} times", float(count)) for times, count in enumerate(shown)]
        if len(rows.forgotten) > 10:
            labels.append(("more often", float(rows.forgotten[10:].sum())))
        found.append(
            bars("Forgotten", labels, across="rows", caption="Right in one snapshot, wrong in the next.")
        )
    return found

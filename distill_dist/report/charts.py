"""Charts as SVG text, by matplotlib: made for print, scaled by their viewBox, a few kB each, and without a script.

An interactive library would put 1 to 4 MB of script into every page. Drawn straight on a Figure: pyplot keeps state.
Colours are Okabe and Ito's, which all eyes tell apart; line styles tell them apart on grey paper too.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000", "#8c6d31")
STYLES = ("-", "--", "-.", ":")
WIDTH_IN, HEIGHT_IN = 4.2, 2.7  # 302 pt wide: at 366 px, a phone's page, 9 pt letters are 11 px high
MOST_POINTS = 400  # of a curve: more than the chart has pixels
_OTHERS = "#b8b8b8"
_TEXT = 38  # characters of a label beside an axis
_SETTINGS: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text: small, sharp, selectable
    "svg.hashsalt": "distill-dist",  # the same numbers give the same bytes
    "text.parse_math": False,  # a dollar in a label is a dollar
    "font.size": 9.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "axes.axisbelow": True,
    "legend.fontsize": 7.5,
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
}


@dataclass(frozen=True)
class Chart:
    """An SVG, and the words for who cannot see it."""

    title: str
    svg: str
    caption: str = ""


@dataclass(frozen=True)
class Line:
    """A curve; ``low`` and ``high`` are a band around it. ``faint``: of those that no legend names."""

    label: str
    steps: np.ndarray
    values: np.ndarray
    low: np.ndarray | None = None
    high: np.ndarray | None = None
    faint: bool = False


@contextmanager
def _figure(height: float = HEIGHT_IN) -> Iterator[tuple[Any, Any]]:
    import matplotlib  # here: a second, which only a page needs
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_SETTINGS), warnings.catch_warnings():
        # the browser has fonts of its own: here only widths are measured
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        figure = Figure(figsize=(WIDTH_IN, height))
        yield figure, figure.add_subplot()


def _svg(figure: Any) -> str:
    out = io.StringIO()
    figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    text = out.getvalue()
    return text[text.index("<svg") :]  # neither declaration nor document type


def lines(title: str, series: Sequence[Line], *, across: str, up: str, caption: str = "") -> Chart:
    """Curves over steps; faint ones below the others."""
    with _figure() as (figure, axes):
        for line in series:
            if line.faint:
                axes.plot(*_thinned(line.steps, line.values), color=_OTHERS, linewidth=0.7)
        named = [line for line in series if not line.faint]
        for number, line in enumerate(named):
            colour, style = COLOURS[number % len(COLOURS)], STYLES[number // 2 % len(STYLES)]
            marker = "o" if len(line.steps) <= 12 else None
            axes.plot(
                *_thinned(line.steps, line.values), color=colour, linestyle=style, linewidth=1.3,
                marker=marker, markersize=3, label=_cut(line.label),
            )  # fmt: skip
            if line.low is not None and line.high is not None:
                axes.fill_between(line.steps, line.low, line.high, color=colour, alpha=0.15, linewidth=0)
        _finish(axes, across, up, legend=len(named) > 1)
        return Chart(title, _svg(figure), caption)


def stairs(title: str, steps: np.ndarray, values: np.ndarray, *, across: str, up: str) -> Chart:
    """A curve that stays at each value until the next; on [0, 1]."""
    with _figure() as (figure, axes):
        axes.step(steps, values, where="post", color=COLOURS[0], linewidth=1.3)
        axes.set_ylim(0, 1.03)
        _finish(axes, across, up)
        return Chart(title, _svg(figure))


def dots(
    title: str, rows: Sequence[tuple[str, Sequence[float]]], *, across: str, mark: float | None = None
) -> Chart:
    """A line per row, first at the top: its values as points, their mean as a bar; ``mark`` a line over all rows."""
    with _figure(0.75 + 0.21 * len(rows)) as (figure, axes):
        for place, (_, values) in enumerate(rows):
            axes.plot(values, [place] * len(values), "o", color=COLOURS[0], markersize=3.5, alpha=0.6)
            mean = sum(values) / len(values)
            axes.plot([mean, mean], [place - 0.35, place + 0.35], color=COLOURS[1], linewidth=2)
        if mark is not None:
            axes.axvline(mark, color="#555555", linewidth=0.8, linestyle="--")
        _rows(axes, [label for label, _ in rows])
        _few_ticks(axes)
        _finish(axes, across, "")
        return Chart(title, _svg(figure))


def bars(title: str, rows: Sequence[tuple[str, float]], *, across: str, caption: str = "") -> Chart:
    """Horizontal bars, the first at the top."""
    with _figure(0.75 + 0.21 * len(rows)) as (figure, axes):
        axes.barh(range(len(rows)), [value for _, value in rows], height=0.65, color=COLOURS[0])
        _rows(axes, [label for label, _ in rows])
        _few_ticks(axes)
        _finish(axes, across, "")
        return Chart(title, _svg(figure), caption)


def scatter(
    title: str, groups: Sequence[tuple[str, Sequence[float], Sequence[float]]], *, across: str, up: str
) -> Chart:
    """Points by group (label, x, y); beyond the colours there are, groups are grey and unnamed."""
    with _figure() as (figure, axes):
        for number, (label, x, y) in enumerate(groups):
            if number < len(COLOURS):
                axes.plot(
                    x,
                    y,
                    "os^Dv<>p"[number],
                    color=COLOURS[number],
                    markersize=4,
                    alpha=0.8,
                    label=_cut(label),
                )
            else:
                axes.plot(x, y, ".", color=_OTHERS, zorder=1)
        _few_ticks(axes)
        _finish(axes, across, up, legend=len(groups) > 1)
        return Chart(title, _svg(figure))


def heat(
    title: str, counts: np.ndarray, *, x_edges: np.ndarray, y_edges: np.ndarray, across: str, up: str,
    columns: Sequence[str] | None = None, shade: Callable[[np.ndarray], np.ndarray] | None = None,
    caption: str = "",
) -> Chart:  # fmt: skip
    """``counts`` [y, x] as darkness, each through ``shade``; ``columns`` name what x stands for."""
    with _figure() as (figure, axes):
        axes.grid(False)
        shown = counts if shade is None else shade(counts)
        axes.pcolormesh(x_edges, y_edges, shown, cmap="Blues", vmin=0, rasterized=True)
        if columns is not None:
            every = -(-len(columns) // 8)
            middles = (x_edges[:-1] + x_edges[1:]) / 2
            axes.set_xticks(middles[::every], columns[::every])
        _finish(axes, across, up)
        return Chart(title, _svg(figure), caption)


def _rows(axes: Any, labels: Sequence[str]) -> None:
    axes.set_yticks(range(len(labels)), [_cut(label) for label in labels], fontsize=7.5)
    axes.set_ylim(len(labels) - 0.4, -0.6)


def _few_ticks(axes: Any) -> None:
    """Numbers below the axis that do not run into each other, also where they are long or the axis is short."""
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(4))


def _finish(axes: Any, across: str, up: str, *, legend: bool = False) -> None:
    axes.set_xlabel(across)
    axes.set_ylabel(up)
    if legend:
        axes.legend(loc="best")


def _thinned(steps: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Means over equal numbers of neighbours, so that no peak is shown without what is around it."""
    every = -(-len(steps) // MOST_POINTS)
    if every <= 1:
        return steps, values
    starts = np.arange(0, len(steps), every)
    sizes = np.diff(np.append(starts, len(steps)))
    return np.add.reduceat(steps, starts) / sizes, np.add.reduceat(values, starts) / sizes


def _cut(text: str) -> str:
    """Short enough, of letters that XML may hold, and not one that matplotlib leaves out of legends."""
    shown = "".join(letter if letter.isprintable() else " " for letter in text).lstrip("_") or "?"
    return shown if len(shown) <= _TEXT else shown[: _TEXT - 1] + "…"

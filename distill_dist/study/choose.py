"""Which point of a grid is the best: by the mean over its seeds of the score that the runs themselves select on."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from distill_dist.errors import UserError
from distill_dist.report.run_record import MAIN_METRICS
from distill_dist.sweep.plan import Trial
from distill_dist.sweep.verdict import read_verdict


@dataclass(frozen=True)
class Point:
    """Values of the grid's fields; ``score`` on ``split`` by ``metric``, and the loss there: means over seeds."""

    values: Mapping[str, str]
    split: str
    metric: str
    score: float
    loss: float

    def to_json(self) -> dict[str, Any]:
        """For the record."""
        return {"values": dict(self.values), "split": self.split, self.metric: self.score, "loss": self.loss}


def measured_points(trials: Sequence[Trial]) -> list[Point]:
    """The points of the grid, best first; of equal scores the lower loss. Raises UserError where a run is not done."""
    return sorted(_points(trials), key=lambda point: (-point.score, point.loss))


def _points(trials: Sequence[Trial]) -> Iterator[Point]:
    members: dict[tuple[tuple[str, str], ...], list[dict[str, Any]]] = {}
    split = trials[0].config.evaluate.select_on
    for trial in trials:
        values = tuple((key, value) for key, value in trial.overrides.items() if key != "seed")
        members.setdefault(values, []).append(_scores(trial, split))
    for values, scores in members.items():
        metric = next(name for name in MAIN_METRICS if all(name in each for each in scores))
        yield Point(
            dict(values), split, metric,
            statistics.fmean(each[metric] for each in scores),
            statistics.fmean(each["loss"] for each in scores),
        )  # fmt: skip


def _scores(trial: Trial, split: str) -> dict[str, Any]:
    verdict = read_verdict(trial.folder)
    if verdict.summary is None:
        raise UserError(
            f"{trial.folder} is {verdict.state} ({verdict.reason or 'no reason given'}): the study cannot choose "
            "without it. Mend it, and add --retry-failed"
        )
    found: dict[str, Any] = verdict.summary["splits"][split]
    if not math.isfinite(found.get("loss") or math.nan):
        return {**found, "loss": math.inf}
    return found

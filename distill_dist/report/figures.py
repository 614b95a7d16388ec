"""The numbers of one run on one split, from its summary and its evaluation."""

from __future__ import annotations

import math
from collections.abc import Sequence

from distill_dist.report.run_record import MAIN_METRICS, RunRecord, number_at, value_at

HEADLINE_SL = "sl_spearman_norm"
LOYALTY = ("ll", "pl", HEADLINE_SL)
NAMES = {
    "accuracy": "accuracy",
    "f1": "F1",
    "matthews": "Matthews",
    "ece": "ECE",
    "loss": "loss",
    "ll": "LL",
    "pl": "PL",
    HEADLINE_SL: "SL",
}


def figure(run: RunRecord, split: str, name: str) -> float | None:
    """The student's ``name`` on ``split``: what the run measured at its end, else what evaluate.py did."""
    places: list[tuple[str, ...]] = [("splits", split, name)]
    if split == "dev":
        places.append(("loyalty", name))
    found = next((value for keys in places if (value := number_at(run.summary, *keys)) is not None), None)
    if found is None:
        measured = value_at(run.evaluation, "splits", split)
        found = number_at(measured, "loyalty" if name in LOYALTY else "student", name)
    return found if found is not None and math.isfinite(found) else None


def interval(run: RunRecord, split: str, name: str) -> tuple[float, float] | None:
    """The 95 % interval over rows that evaluate.py found; None where it did not look."""
    whose = "loyalty" if name in LOYALTY else "student"
    return pair(value_at(run.evaluation, "splits", split, "intervals", whose, name))


def pair(found: object) -> tuple[float, float] | None:
    """Two numbers; None for anything else."""
    match found:
        case [int() | float() as low, int() | float() as high]:
            return float(low), float(high)
    return None


def teacher_figure(run: RunRecord, split: str, name: str) -> float | None:
    """The teacher's ``name`` on ``split``."""
    found = number_at(run.summary, "teacher", name) if split == "dev" else None
    return number_at(run.evaluation, "splits", split, "teacher", name) if found is None else found


def splits_of(runs: Sequence[RunRecord]) -> list[str]:
    """Every split that one of the runs was scored on, dev first."""
    found: dict[str, None] = {}
    for run in runs:
        for tree in (run.summary, run.evaluation):
            splits = value_at(tree, "splits")
            found.update(dict.fromkeys(splits if isinstance(splits, dict) else ()))
    return sorted(found, key=lambda name: (name != "dev", name))


def main_metric(runs: Sequence[RunRecord], split: str) -> str:
    """What the task is judged by."""
    return next(
        (name for name in MAIN_METRICS if any(figure(run, split, name) is not None for run in runs)),
        "accuracy",
    )

"""What `launcher/evaluate.py` kept of every row, as metrics whose rows can be drawn again."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from distill_dist.errors import UserError
from distill_dist.evaluation.confusion import accuracy, confusion_columns, f1, matthews
from distill_dist.evaluation.predictions import Predictions, read_predictions
from distill_dist.evaluation.summed import Summed, mean_of
from distill_dist.report.run_record import RunRecord, value_at

_OF_CONFUSION: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "accuracy": accuracy,
    "matthews": matthews,
    "f1": partial(f1, number=1),
}
COMMAND = "python launcher/evaluate.py"


def find_predictions(run: RunRecord, split: str) -> Predictions | None:
    """Of the student, and its teacher, on ``split``; None where there are none, or damaged ones, which is noted."""
    path = predictions_file(run, split)
    if path is None:
        return None
    try:
        return read_predictions(path)
    except (UserError, OSError, UnicodeDecodeError) as error:
        run.problems.append(f"{path.name}: {error}")
        return None


def predictions_file(run: RunRecord, split: str) -> Path | None:
    """Where they are; None where there are none."""
    name = value_at(run.evaluation, "predictions", split, "file")
    if not isinstance(name, str):
        return None
    path = run.path / name
    return path if _is_inside(path, run.path) and path.is_file() else None


def _is_inside(path: Path, folder: Path) -> bool:
    return path.resolve().is_relative_to(folder.resolve())


def data_of(run: RunRecord) -> str:
    """The hash of the prepared data that evaluate.py scored; runs with the same one are compared row by row."""
    found = value_at(run.evaluation, "data", "manifest")
    return found if isinstance(found, str) else ""


def row_scores(found: Predictions, metric: str) -> Summed | None:
    """``metric`` over the rows; None for one that predictions do not tell."""
    predicted = found.student_NC.argmax(axis=1)
    if metric == "ll":
        if found.teacher_NC is None:
            return None
        return mean_of((predicted == found.teacher_NC.argmax(axis=1)).astype(np.float64))
    of = _OF_CONFUSION.get(metric)
    if of is None:
        return None
    return Summed(confusion_columns(predicted, found.labels_N, found.student_NC.shape[1]), of)

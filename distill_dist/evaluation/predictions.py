"""What both models said of every row, as a file: for a report that compares runs row by row.

Tab-separated, one header line. `row` is the row's number in the prepared split, `label` its class number, `student_0` …
and `teacher_0` … the probabilities of the classes by number, then further numbers of the row under their names, empty
where it has none. Numbers stand in full: what is computed from the file is what was computed here.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from distill_dist.errors import UserError
from distill_dist.evaluation.summed import Floats


@dataclass(frozen=True)
class Predictions:
    """Of one split, in row order; ``teacher_NC`` None where there was none; ``more`` [N] each, NaN for none."""

    labels_N: NDArray[np.integer]
    student_NC: Floats
    teacher_NC: Floats | None
    more: Mapping[str, Floats]


def write_predictions(path: Path, found: Predictions) -> None:
    """The file at ``path``; not durably, which is for who puts it into its place."""
    columns: list[list[object]] = [list(range(len(found.labels_N))), found.labels_N.tolist()]
    header = ["row", "label"]
    for name, values_NC in (("student", found.student_NC), ("teacher", found.teacher_NC)):
        if values_NC is not None:
            header += [f"{name}_{number}" for number in range(values_NC.shape[1])]
            columns += values_NC.T.tolist()
    for name, values_N in found.more.items():
        header.append(name)
        columns.append(["" if np.isnan(value) else value for value in values_N.tolist()])

    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, delimiter="\t", lineterminator="\n")
        writer.writerow(header)
        writer.writerows(zip(*columns, strict=True))


def read_predictions(path: Path) -> Predictions:
    """What ``write_predictions`` wrote, to the last bit. Raises UserError for any other file."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file, delimiter="\t"))
    header, body = (rows[0], rows[1:]) if rows else ([], [])
    try:
        if header[:3] != ["row", "label", "student_0"]:
            raise ValueError("its header is another one")
        columns = dict(zip(header, zip(*body, strict=True), strict=True))
        if columns["row"] != tuple(map(str, range(len(body)))):
            raise ValueError("its rows are not 0, 1, 2, …")
        student_NC = _classes(columns, "student")
        teacher_NC = _classes(columns, "teacher") if "teacher_0" in columns else None
        taken = 2 + student_NC.shape[1] + (0 if teacher_NC is None else teacher_NC.shape[1])
        more = {name: np.array([float(text or "nan") for text in columns[name]]) for name in header[taken:]}
        return Predictions(np.array(columns["label"], dtype=np.int64), student_NC, teacher_NC, more)
    except (ValueError, IndexError, KeyError) as error:
        raise UserError(f"{path} is not what launcher/evaluate.py writes ({error}): run it again") from error


def _classes(columns: Mapping[str, tuple[str, ...]], name: str) -> Floats:
    number, found = 0, []
    while f"{name}_{number}" in columns:
        found.append(np.array(columns[f"{name}_{number}"], dtype=np.float64))
        number += 1
    return np.stack(found, axis=1)

"""A run's TensorBoard points, read back without torch: curves and histograms by tag."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.tensorflow_stub import errors
from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import PyRecordReader_New

from distill_dist.report.run_record import by_number


@dataclass(frozen=True)
class Histogram:
    """One step's: ``counts`` [bins] and ``edges`` [bins + 1]."""

    step: int
    counts: np.ndarray
    edges: np.ndarray


@dataclass
class Points:
    """Everything a run wrote. Curves are (steps int64 [n], values float64 [n]), steps ascending."""

    curves: dict[str, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)
    histograms: dict[str, list[Histogram]] = field(default_factory=dict)


def read_points(folder: Path, problems: list[str]) -> Points:
    """The points of all event files in ``folder``; what cannot be read goes into ``problems``.

    A run that went on from a checkpoint says from which step (`purge_step`), and later points of the files before
    are dropped, as TensorBoard does.
    """
    scalars: dict[str, dict[int, float]] = {}
    histograms: dict[str, dict[int, Histogram]] = {}
    files = sorted(folder.glob("events.out.tfevents.*"), key=lambda path: by_number(path.name))
    for file in files:
        for event in _events(file, problems):
            if event.HasField("session_log") and event.session_log.status == SessionLog.START:
                _forget(scalars, event.step)
                _forget(histograms, event.step)
            for value in event.summary.value:
                if value.HasField("simple_value"):
                    scalars.setdefault(value.tag, {})[event.step] = value.simple_value
                elif value.HasField("histo"):
                    found = _histogram(event.step, value.histo)
                    if found is not None:
                        histograms.setdefault(value.tag, {})[event.step] = found
    return Points(
        {tag: _curve(by_step) for tag, by_step in scalars.items() if by_step},
        {tag: [by_step[step] for step in sorted(by_step)] for tag, by_step in histograms.items() if by_step},
    )


def _forget(known: dict[str, dict[int, Any]], first: int) -> None:
    """Drop every point from step ``first`` on."""
    for by_step in known.values():
        for step in [step for step in by_step if step >= first]:
            del by_step[step]


def _events(file: Path, problems: list[str]) -> Iterator[Any]:
    """The records of a file up to its end, or to the first that is damaged."""
    try:
        reader = PyRecordReader_New(str(file))
        while True:
            reader.GetNext()
            yield Event.FromString(reader.record())
    except errors.OutOfRangeError:
        return
    except errors.DataLossError as error:
        reason = "ends within a record" if "truncated" in str(error) else "has a damaged record"
        problems.append(f"tensorboard/{file.name} {reason}: points after it are missing")
    except Exception as error:  # protobuf's DecodeError, and whatever gfile makes of an OSError
        problems.append(
            f"tensorboard/{file.name} cannot be read ({type(error).__name__}): points are missing"
        )


def _curve(by_step: dict[int, float]) -> tuple[np.ndarray, np.ndarray]:
    steps = np.array(sorted(by_step), np.int64)
    return steps, np.array([by_step[step] for step in steps.tolist()], np.float64)


def _histogram(step: int, raw: Any) -> Histogram | None:
    """Bins of equal width, as `telemetry.Telemetry.histograms` writes them; None for others."""
    counts, rights = np.array(raw.bucket), np.array(raw.bucket_limit)
    if len(rights) < 2 or len(counts) != len(rights):
        return None
    width = rights[1] - rights[0]
    return Histogram(step, counts, np.concatenate([[rights[0] - width], rights]))

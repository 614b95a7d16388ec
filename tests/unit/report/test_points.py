"""TensorBoard's files as telemetry writes them are read back; what is damaged is named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from distill_dist.report.points import read_points
from distill_dist.telemetry import Telemetry


def write(folder: Path, *, start: int, steps: range, offset: float = 0.0) -> None:
    telemetry = Telemetry(
        folder, terms=(), rank=0, students=1, sum_=lambda tensor: tensor, device=torch.device("cpu"),
        total_steps=100, start_step=start, progress=False,
    )  # fmt: skip
    for step in steps:
        telemetry.write(step, {"loss/cross_entropy": step + offset})
    telemetry.histograms(steps[-1], {"curriculum/confidence": (np.array([1, 0, 3]), np.linspace(0, 1, 4))})
    telemetry.close()


def test_curves_and_histograms(tmp_path: Path) -> None:
    write(tmp_path, start=0, steps=range(1, 6))
    problems: list[str] = []
    found = read_points(tmp_path, problems)
    steps, values = found.curves["loss/cross_entropy"]
    assert (steps.tolist(), values.tolist()) == ([1, 2, 3, 4, 5], [1.0, 2.0, 3.0, 4.0, 5.0])
    (histogram,) = found.histograms["curriculum/confidence"]
    assert (histogram.step, histogram.counts.tolist()) == (5, [1.0, 0.0, 3.0])
    np.testing.assert_allclose(histogram.edges, np.linspace(0, 1, 4), atol=1e-12)
    assert problems == []


def test_a_run_that_went_on_from_a_checkpoint_has_each_step_once(tmp_path: Path) -> None:
    """As TensorBoard itself reads it: what the killed process wrote after the checkpoint is gone."""
    write(tmp_path, start=0, steps=range(1, 9))
    # file names hold whole seconds
    first = next(tmp_path.glob("events*"))
    first.rename(first.with_name(first.name.replace("tfevents.", "tfevents.0")))
    write(tmp_path, start=4, steps=range(6, 8), offset=0.5)
    steps, values = read_points(tmp_path, []).curves["loss/cross_entropy"]
    assert (steps.tolist(), values.tolist()) == ([1, 2, 3, 4, 6, 7], [1.0, 2.0, 3.0, 4.0, 6.5, 7.5])
    library = EventAccumulator(str(tmp_path), size_guidance={"scalars": 0})
    library.Reload()
    assert [event.value for event in library.Scalars("loss/cross_entropy")] == values.tolist()


def cut(content: bytes) -> bytes:
    return content[:-7]


def flip(content: bytes) -> bytes:
    place = len(content) * 2 // 3
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (cut, "ends within a record"),
        (flip, "damaged record"),
        (lambda _: b"not events at all", "damaged record"),
    ],
)
def test_damage_is_named_and_what_is_before_it_kept(
    tmp_path: Path, harm: Callable[[bytes], bytes], said: str
) -> None:
    write(tmp_path, start=0, steps=range(1, 51))
    (file,) = tmp_path.glob("events*")
    file.write_bytes(harm(file.read_bytes()))
    problems: list[str] = []
    found = read_points(tmp_path, problems)
    assert len(problems) == 1
    assert said in problems[0]
    if harm is not cut and harm is not flip:
        assert found.curves == {}
        return
    steps, values = found.curves["loss/cross_entropy"]
    assert steps.tolist() == list(range(1, len(steps) + 1))
    assert values.tolist() == steps.tolist()
    assert 25 < len(steps) <= 50


def test_no_folder_is_no_points(tmp_path: Path) -> None:
    assert read_points(tmp_path / "none", []).curves == {}

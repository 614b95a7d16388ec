from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from distill_dist.errors import UserError
from distill_dist.evaluation.metrics import probabilities
from distill_dist.evaluation.predictions import Predictions, read_predictions, write_predictions

GENERATOR = np.random.default_rng(0)
LABELS = np.array([2, 0, 1, 1], dtype=np.int32)
STUDENT, TEACHER = (probabilities(40 * GENERATOR.standard_normal((4, 3))) for _ in range(2))
MORE = {"sl_spearman_norm": np.array([0.5, np.nan, -1 / 3, 0.1])}


@pytest.mark.parametrize("teacher", [TEACHER, None], ids=["teacher", "alone"])
@pytest.mark.parametrize("more", [MORE, {}], ids=["saliency", "plain"])
def test_what_is_read_is_what_was_written_to_the_last_bit(tmp_path: Path, teacher, more) -> None:
    path = tmp_path / "dev.tsv"
    write_predictions(path, Predictions(LABELS, STUDENT, teacher, more))
    assert 0 < STUDENT.min() < 1e-20, "a probability that few digits would lose"
    found = read_predictions(path)
    assert np.array_equal(found.labels_N, LABELS)
    assert np.array_equal(found.student_NC, STUDENT)
    assert (found.teacher_NC is None) == (teacher is None)
    assert teacher is None or np.array_equal(found.teacher_NC, teacher)
    assert found.more.keys() == more.keys()
    assert all(np.array_equal(found.more[name], more[name], equal_nan=True) for name in more)


def test_the_file_says_what_it_holds(tmp_path: Path) -> None:
    write_predictions(tmp_path / "dev.tsv", Predictions(LABELS, STUDENT, TEACHER, MORE))
    lines = (tmp_path / "dev.tsv").read_text().splitlines()
    assert lines[0].split("\t") == [
        "row", "label", "student_0", "student_1", "student_2", "teacher_0", "teacher_1", "teacher_2",
        "sl_spearman_norm",
    ]  # fmt: skip
    assert len(lines) == 5
    assert lines[1].split("\t")[:3] == ["0", "2", repr(float(STUDENT[0, 0]))]
    assert lines[2].split("\t")[-1] == ""


@pytest.mark.parametrize(
    "content",
    [
        "",
        "row\tlabel\n",
        "index\tprediction\n0\t1\n",
        "row\tlabel\tstudent_0\n1\t0\t1.0\n",
        "row\tlabel\tstudent_0\n0\t0\n",
    ],
)
def test_another_file_is_named(tmp_path: Path, content: str) -> None:
    path = tmp_path / "dev.tsv"
    path.write_text(content)
    with pytest.raises(
        UserError, match=rf"^{path} is not what launcher/evaluate.py writes \(.+\): run it again"
    ):
        read_predictions(path)

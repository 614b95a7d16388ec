"""The verdict of a run that ends before its first step."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from distill_dist.assemble import student_rank
from distill_dist.errors import Interrupted, UserError
from distill_dist.run_folder import RunFolder
from distill_dist.teacher.local import TeacherLost


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (UserError("teacher1 does not teach what the others do"), ("failed", False)),
        (TeacherLost("teacher1 cannot be called"), ("stopped", True)),
    ],
)
@pytest.mark.parametrize("where", ["meet_teacher", "same_teachers"])
def test_a_teacher_that_is_not_met_ends_the_run_with_that_verdict(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: UserError | Interrupted,
    expected: tuple[str, bool],
    where: str,
) -> None:
    def fail(*_: object) -> None:
        raise error

    folder, unused = RunFolder(tmp_path), contextlib.nullcontext()
    folder.set_state("stopped", resumable=True, reason="of the start before")
    place: Any = SimpleNamespace(student=1, loading=lambda **_: unused)  # not the one that speaks
    config: Any = SimpleNamespace(cluster=SimpleNamespace(collective_s=1.0), train=None)
    loaded, stop = SimpleNamespace(resumed=None), SimpleNamespace(why=None)
    monkeypatch.setattr(student_rank, "load", lambda *_: loaded)
    monkeypatch.setattr(
        student_rank,
        "_join",
        lambda *_: SimpleNamespace(naming_the_lost=lambda: unused, agree=lambda value: value, rank=1),
    )
    monkeypatch.setattr(student_rank, "meet_teacher", lambda *_: student_rank.Met())
    monkeypatch.setattr(student_rank, where, fail)
    with pytest.raises(type(error)):
        student_rank.train_student(config, place, stop, folder)  # type: ignore[arg-type]
    state = json.loads((tmp_path / "state.json").read_text(encoding="utf-8"))
    assert (state["state"], state["resumable"]) == expected
    assert str(error) in state["reason"]

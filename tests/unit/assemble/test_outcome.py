from __future__ import annotations

import errno
import json
import logging
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from config.trees import good_with
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import save_file

from distill_dist import checkpoint
from distill_dist.assemble.outcome import Outcome
from distill_dist.errors import Interrupted
from distill_dist.run_folder import RunFolder
from distill_dist.telemetry import Totals


class Group:
    """One of two students; ``others`` is what the sibling says when they agree."""

    size = 2

    def __init__(self, rank: int, others: int = 0) -> None:
        self.rank, self.others, self.agreed = rank, others, 0

    def agree(self, value: int) -> int:
        self.agreed += 1
        return max(value, self.others)

    def sum_integers(self, values: NDArray[np.int64]) -> NDArray[np.int64]:
        return values  # the sibling has nothing to add


def outcome(root: Path, group: Group, *, saved_step: int = 0) -> Outcome:
    unused: Any = None
    engine: Any = SimpleNamespace(state_dict=lambda: {"weights/a": torch.ones(2)})
    config: Any = SimpleNamespace(train=SimpleNamespace(keep_last=2))
    folder: Any = SimpleNamespace(checkpoints=root)
    students: Any = group
    return Outcome(
        config=config, engine=engine, student=unused, teacher=None, scorers={}, group=students, telemetry=unused,
        folder=folder, tokenizer=root, identity={}, alignment=None, best=None, saved_step=saved_step,
        curriculum=dict, order=lambda: None,
    )  # fmt: skip


def test_a_step_is_saved_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = outcome(tmp_path, Group(0))
    target.save(20)
    assert [folder.name for folder in checkpoint.complete_folders(tmp_path)] == ["step-00000020"]

    def again(*args: object, **more: object) -> None:
        raise AssertionError("written twice")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save", again)
        target.save(20)
    target.save(30)
    assert len(checkpoint.complete_folders(tmp_path)) == 2


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        SafetensorError("I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_full_disk_stops_all_students_in_good_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def full(*args: object, **more: object) -> None:
        raise error

    monkeypatch.setattr(checkpoint, "save", full)
    first, second = Group(0), Group(1, others=1)
    with pytest.raises(Interrupted, match=rf"{tmp_path} cannot be written \(.*No space left.*\): make room"):
        outcome(tmp_path, first).save(20)
    with pytest.raises(Interrupted, match="cannot be written"):
        outcome(tmp_path, second).save(20)
    assert first.agreed == second.agreed == 1


def test_a_sibling_writes_nothing(tmp_path: Path) -> None:
    outcome(tmp_path, Group(1)).save(20)
    assert list(tmp_path.iterdir()) == []


def test_the_teacher_is_heard_before_the_first_step_and_not_at_an_epochs_end(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """An epoch's end that waited for a teacher would lose the epoch when the run is stopped meanwhile."""
    asked: list[str] = []
    logits = np.zeros((2, 2))

    def scorer(name: str) -> Any:
        def logits_NC(source: Any) -> Any:
            asked.append(f"{source.name} {name}")
            return logits

        return SimpleNamespace(logits_NC=logits_NC, metrics=lambda logits_NC: {"accuracy": 0.5})

    costs = {"bytes_per_row": 900.4, "embedding_gradient": 1e-5}
    written: list[dict[str, float]] = []
    telemetry: Any = SimpleNamespace(write=lambda step, scalars: written.append(scalars))
    teacher: Any = SimpleNamespace(name="teacher")
    watch: Any = SimpleNamespace(begin=lambda step: asked.append(f"watch from {step}"))
    engine: Any = SimpleNamespace(module=torch.nn.Identity())
    target = replace(
        outcome(tmp_path, Group(0)), teacher=teacher, student=SimpleNamespace(name="student"), engine=engine,
        telemetry=telemetry, scorers={name: scorer(name) for name in ("dev", "test")}, watch=watch, wire=(costs,),
    )  # fmt: skip
    with caplog.at_level(logging.INFO, logger="distill_dist"):
        target.hear_teacher()
    assert asked == ["teacher dev", "teacher test", "watch from 0"]
    assert written == [{"wire/bytes_per_row": 900.4, "wire/embedding_gradient": 1e-5}]
    assert caplog.messages == ["wire: 900 bytes a row (1 − cosine: embedding_gradient 1.0e-05)"]
    asked.clear()
    for name in ("dev", "test"):
        assert target._score(name)["ll"] == 1.0
    assert asked == ["student dev", "student test"]


def ended(folder: RunFolder, totals: Totals, curriculum: dict[str, Any] | None) -> Any:
    """What summary.json says of the curriculum at the end of a process that trained for ``totals``."""
    engine: Any = SimpleNamespace(
        weights=dict, load_weights=lambda weights: None, module=torch.nn.Identity(), zero_stage=1
    )
    scorer: Any = SimpleNamespace(logits_NC=lambda source: None, metrics=lambda logits_NC: {"accuracy": 1.0})
    telemetry: Any = SimpleNamespace(totals=totals)
    target = replace(
        outcome(folder.path, Group(0)), config=good_with({}), engine=engine, telemetry=telemetry, folder=folder,
        scorers={"dev": scorer}, order=lambda: curriculum,
    )  # fmt: skip
    found = target.summary(100)
    assert json.loads(folder.summary.read_text(encoding="utf-8")) == found
    return found["curriculum"]


def test_a_finished_run_that_is_started_again_says_the_same_of_its_curriculum(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.model.mkdir()
    save_file({"a": torch.ones(2)}, folder.model / "model.safetensors")
    trained = Totals(sequences=8, real_tokens=50, computed_tokens=60, elapsed_s=2.0)
    scored = {"order": "easy_to_hard", "snapshot": {"number": 1, "hash": "0123"}, "scoring_s": 0.7}
    nothing_opened = {**scored, "snapshot": None, "scoring_s": 0.0}
    assert ended(folder, trained, scored) == scored
    assert ended(folder, Totals(), nothing_opened) == scored
    folder.summary.unlink()  # it died before it could say anything
    assert ended(folder, Totals(), nothing_opened) == nothing_opened
    assert ended(folder, trained, None) is None
    assert ended(folder, Totals(), None) is None


def test_a_cache_in_this_process_has_no_wire_but_a_note(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    unused: Any = SimpleNamespace(begin=lambda step: None)
    for folder, notes in (("", 0), ("cache", 1)):
        config = good_with({"teacher.cache_dir": folder})
        target = replace(outcome(tmp_path, Group(0)), teacher=unused, watch=unused, config=config)
        with caplog.at_level(logging.INFO, logger="distill_dist"):
            target.hear_teacher()
        assert sum("wire: nothing travels" in message for message in caplog.messages) == notes


def test_saliency_loyalty_that_is_not_defined_is_null_and_the_log_says_why(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    engine: Any = SimpleNamespace(module=torch.nn.Identity())
    scorer: Any = SimpleNamespace(saliency_loyalty=lambda student, teacher: 0.5)
    teacher: Any = SimpleNamespace()
    target = replace(outcome(tmp_path, Group(0)), engine=engine, scorers={"dev": scorer})
    assert target._saliency_loyalty(teacher) == 0.5
    assert caplog.messages == []
    with caplog.at_level(logging.INFO, logger="distill_dist"):
        assert replace(target, no_saliency="it is a decoder")._saliency_loyalty(teacher) is None
    assert caplog.messages == ["saliency loyalty is not measured: it is a decoder"]

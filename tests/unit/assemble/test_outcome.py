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
from safetensors import SafetensorError
from safetensors.torch import save_file

from assemble.savers import Group, saver_of
from distill_dist.assemble.outcome import Outcome
from distill_dist.config.schema import EvaluateConfig, RunConfig
from distill_dist.errors import Interrupted
from distill_dist.run_folder import RunFolder
from distill_dist.telemetry import Totals


def outcome(root: Path, group: Group) -> Outcome:
    unused: Any = None
    folder: Any = SimpleNamespace(model=root / "model")
    students: Any = group
    return Outcome(
        config=RunConfig(), engine=unused, student=unused, teacher=None, scorers={}, group=students, telemetry=unused,
        folder=folder, save_tokenizer=unused, identity={}, alignment=None, matched_layers=None,
        best=None, saver=saver_of(root, group), curriculum=dict, order=lambda: None,
    )  # fmt: skip


def test_another_split_selects_and_large_ones_wait_for_the_end(tmp_path: Path) -> None:
    written: dict[str, float] = {}
    scorer: Any = SimpleNamespace(metric="accuracy")
    target = replace(
        outcome(tmp_path, Group(1)),
        config=RunConfig(evaluate=EvaluateConfig(select_on="tune", at_end=("held_out",))),
        telemetry=SimpleNamespace(write=lambda step, scalars: written.update(scalars)),
        scorers=dict.fromkeys(("dev", "tune", "held_out"), scorer),
    )
    target._score = lambda split: {"accuracy": {"dev": 0.9, "tune": 0.5}[split]}  # type: ignore[method-assign]
    target.best = {"step": 1, "value": 0.6}
    target.end_epoch(2)
    assert (target.best["step"], written) == (1, {"dev/accuracy": 0.9, "tune/accuracy": 0.5})
    described: list[dict[str, Any]] = []
    target.saver.save = lambda step, describe: described.append(describe())  # type: ignore[method-assign]
    target.save(2)
    assert described[0]["score"] == 0.5


def test_a_checkpoint_holds_the_score_of_its_own_step_alone(tmp_path: Path) -> None:
    """`train.keep_best` counts by it."""
    score = {"accuracy": 0.75, "loss": 1.0}
    scorer: Any = SimpleNamespace(metric="accuracy")
    telemetry: Any = SimpleNamespace(write=lambda step, scalars: None)
    target = replace(outcome(tmp_path, Group(1)), telemetry=telemetry, scorers={"dev": scorer})
    target._score = lambda split: score  # type: ignore[method-assign]
    target.best = {"step": 10, "value": 0.8}
    described: list[tuple[int, dict[str, Any]]] = []
    target.saver.save = lambda step, describe: described.append((step, describe()))  # type: ignore[method-assign]
    target.save(10)
    target.end_epoch(20)
    target.save(20)
    target.save(30)
    assert [(step, progress["score"]) for step, progress in described] == [(10, None), (20, 0.75), (30, None)]
    assert all(progress["step"] == step and progress["best"] == target.best for step, progress in described)


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        SafetensorError("I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_model_that_cannot_be_written_stops_all_students_in_good_order(
    tmp_path: Path, error: Exception
) -> None:
    def full() -> None:
        raise error

    first, second = Group(0), Group(1, others=1)
    for group in (first, second):
        with pytest.raises(Interrupted, match=rf"{tmp_path} cannot be written \(.*\): make room"):
            outcome(tmp_path, group)._write(full, tmp_path)
    assert first.agreed == second.agreed == 1
    assert outcome(tmp_path, Group(0))._write(lambda: "done", tmp_path) == "done"


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

        return SimpleNamespace(
            logits_NC=logits_NC, metrics=lambda logits_NC: {"accuracy": 0.5}, most_frequent_share=0.4
        )

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


@pytest.mark.parametrize(("accuracy", "rank", "warned"), [(0.5, 0, True), (0.6, 0, False), (0.5, 1, False)])
def test_a_teacher_no_better_than_the_most_frequent_class_is_doubted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, accuracy: float, rank: int, warned: bool
) -> None:
    scorer: Any = SimpleNamespace(
        logits_NC=lambda source: np.zeros((2, 2)),
        metrics=lambda logits_NC: {"accuracy": accuracy},
        most_frequent_share=0.5,
    )
    target = replace(outcome(tmp_path, Group(rank)), teacher=SimpleNamespace(), scorers={"dev": scorer})
    target.hear_teacher()
    assert any("was teacher.path fine-tuned" in message for message in caplog.messages) == warned


@pytest.mark.parametrize(
    ("values", "loyalty", "warned"),
    [
        ({"method": "gkd"}, 0.6, True),
        ({"method": "gkd_cls"}, 0.74, True),
        ({"method": "gkd"}, 0.76, False),
        ({"method": "gkd", "alignment.signal": "teacher_max"}, 0.6, False),
        ({"method": "kd"}, 0.6, False),
    ],
)
def test_matching_gradients_of_different_classes_is_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, values: dict[str, Any], loyalty: float, warned: bool
) -> None:
    telemetry: Any = SimpleNamespace(write=lambda step, scalars: None)
    scorer: Any = SimpleNamespace(metric="accuracy")
    target = replace(
        outcome(tmp_path, Group(0)), config=good_with(values), telemetry=telemetry, scorers={"dev": scorer}
    )
    target._score = lambda split: {"accuracy": 0.5, "ll": loyalty}  # type: ignore[method-assign]
    target.best = {"step": 1, "value": 0.6}
    target.end_epoch(2)
    found = [message for message in caplog.messages if "alignment.signal=teacher_max" in message]
    assert len(found) == warned


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

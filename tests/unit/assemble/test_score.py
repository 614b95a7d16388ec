"""Models that do not fit the prepared data, or are damaged: one message each, whoever asks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_encoders import tiny_encoder

from distill_dist.assemble.models import check_tokenizer, teacher_shape
from distill_dist.assemble.score import score
from distill_dist.config.load import load_config
from distill_dist.config.schema import RunConfig, TeacherConfig
from distill_dist.data.prepare import prepare
from distill_dist.errors import UserError


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """A corpus of a few rows, prepared."""
    prepared = tmp_path_factory.mktemp("world") / "prepared"
    rows = ["data.synthetic.train_rows=20", "data.synthetic.dev_rows=10", "data.synthetic.max_steps=1"]
    arguments = ["data.source=synthetic_nli", f"data.prepared={prepared}", "cluster.device=cpu", *rows]
    found = load_config(None, arguments, need="prepare")
    prepare(found.data, progress=False)
    return found


def model_of(folder: Path, **more: Any) -> Path:
    """A classifier over the three classes, without a tokenizer."""
    tiny_encoder(dtype=torch.float32, **more).save_pretrained(folder)
    return folder


def test_a_model_of_a_smaller_vocabulary_is_refused(config: RunConfig, tmp_path: Path) -> None:
    """Its embedding would fail at the first row that it has no place for."""
    path = model_of(tmp_path / "small")
    with pytest.raises(UserError, match=rf"student='{path}' embeds 40 tokens"):
        score(config, student=str(path), teacher="", split="dev", saliency=False)


def test_the_student_is_not_called_a_teacher(config: RunConfig, tmp_path: Path) -> None:
    path = model_of(tmp_path / "two", classes=2)
    with pytest.raises(UserError, match=rf"^the student at '{path}' knows the classes"):
        score(config, student=str(path), teacher="", split="dev", saliency=False)


def test_no_silent_cpu(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    asked = replace(config, cluster=replace(config.cluster, device="cuda"))
    with pytest.raises(UserError, match=r"cluster\.device=cuda"):
        score(asked, student="anything", teacher="", split="dev", saliency=False)


@pytest.mark.parametrize("content", ["{", "", "[]", "{}", '{"version": "1.0"}'])
def test_a_damaged_tokenizer_is_named(config: RunConfig, tmp_path: Path, content: str) -> None:
    path = model_of(tmp_path / "model")
    (path / "tokenizer.json").write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=rf"no tokenizer could be loaded from '{path}': \S"):
        check_tokenizer(str(path), Path(config.data.prepared), what="student")


@pytest.mark.parametrize("content", ["{", "null", '{"model_type": "bert", "hidden_size": "x"}'])
def test_a_damaged_teacher_configuration_is_named(config: RunConfig, tmp_path: Path, content: str) -> None:
    path = model_of(tmp_path / "model")
    (path / "config.json").write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=rf"no model could be loaded from '{path}': \S"):
        teacher_shape(replace(config, teacher=TeacherConfig(path=str(path))))

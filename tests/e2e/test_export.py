"""Exported students in an environment without this project: the same logits to the last bit, names, long texts."""

from __future__ import annotations

import json
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from tiny import REPOSITORY
from transformers import AutoModelForSequenceClassification
from unit.assemble.export_cases import prepare_pairs, write_run

from distill_dist.assemble.export_run import ExportAsked, export_run
from e2e.conftest import Reference
from e2e.exports import Exported, check_elsewhere, export, programs_of

pytestmark = pytest.mark.timeout(900)  # the first test of a session also waits for its fixtures


@pytest.fixture(scope="module")
def as_wide(reference: Reference, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """A student as wide as its teacher, by GKD-CLS, with all that can be exported."""
    more = ("--onnx", "--latency", "--rounds", "1")
    return export(reference.run_dir, tmp_path_factory.mktemp("wide"), *more)


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An interpreter with the packages of this one, but for what is installed by a .pth file: this project is."""
    folder = tmp_path_factory.mktemp("fresh") / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True, timeout=120)
    (packages,) = folder.glob("lib/python*/site-packages")
    # the lines of an added folder's own .pth files are not read
    (packages / "others.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    return folder / "bin" / "python"


def test_a_student_as_wide_as_its_teacher(python: Path, as_wide: Exported, tmp_path: Path) -> None:
    check_elsewhere(python, as_wide, tmp_path)


def test_a_student_with_a_projection(python: Path, tmp_path: Path) -> None:
    """Half as wide as its teacher, behind the teacher's embedding; not trained (`make export` has one that was)."""
    (tmp_path / "rows").mkdir()
    shape = ("hidden_size=8", "num_hidden_layers=2", "num_attention_heads=2", "intermediate_size=16")
    electra = (
        "student.architecture=electra",
        "student.layers=null",
        *(f"student.shape.{each}" for each in shape),
    )
    config = write_run(tmp_path / "run", prepare_pairs(tmp_path / "rows"), *electra)
    line = export_run(config, ExportAsked(tmp_path / "run", tmp_path / "student"))
    found = json.loads((tmp_path / "student" / "config.json").read_text(encoding="utf-8"))
    assert (found["model_type"], found["embedding_size"], found["hidden_size"]) == ("electra", 16, 8)
    check_elsewhere(python, Exported(tmp_path / "run", tmp_path / "student", line), tmp_path)


def test_the_cards_onnx_program_says_what_the_model_does(
    as_wide: Exported, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, program = programs_of(as_wide)
    monkeypatch.chdir(as_wide.out)
    names: dict[str, Any] = {}
    exec(program, names)
    (found_BC,) = names["session"].run(["logits"], dict(names["given"]))
    model = AutoModelForSequenceClassification.from_pretrained(as_wide.out)
    given = {name: torch.from_numpy(values) for name, values in names["given"].items()}
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(found_BC), model(**given).logits)


def test_what_the_launcher_says(as_wide: Exported) -> None:
    line, card = as_wide.line, ModelCard.load(as_wide.out / "README.md")
    dev = line["splits"]["dev"]
    summary = json.loads((as_wide.run_dir / "summary.json").read_text(encoding="utf-8"))
    assert dev["student"]["accuracy"]["value"] == summary["student"]["accuracy"]
    assert dev["loyalty"]["ll"]["value"] == summary["loyalty"]["ll"]
    low, high = dev["loyalty"]["sl_spearman_norm"]["interval"]
    assert low < dev["loyalty"]["sl_spearman_norm"]["value"] < high
    assert line["onnx"]["largest_difference"] <= line["onnx"]["tolerance"]
    names = [each["name"] for each in line["latency"]["contenders"]]
    assert names == ["teacher", "student", "student, ONNX", "student, int8"]
    (result,) = card.data.eval_results
    assert result.metric_value == pytest.approx(summary["student"]["accuracy"], abs=1e-6)
    for path in as_wide.out.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            for place in (str(REPOSITORY), str(as_wide.run_dir.parent), sys.prefix):
                assert place.encode() not in content, (path, place)

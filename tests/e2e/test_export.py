"""Exported students in an environment without this project: the same logits to the last bit, names, long texts.

DISTILL_WHOLE_EXPORT=1 (`make export`): also in a new environment with torch and transformers from the package index.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from tiny import REPOSITORY, World, last_json, launch, start, state, wait_until
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from e2e.conftest import Reference

pytestmark = pytest.mark.timeout(900)  # the first test of a session also waits for its fixtures
WHOLE = bool(os.environ.get("DISTILL_WHOLE_EXPORT"))
PAIRS = [
    ["anna is taller than bob", "bob is taller than anna"],
    ["every dog sleeps", "no dog sleeps and no cat sleeps"],
    ["anna", "bob"],
    ["anna is taller than bob " * 40, "bob " * 40],  # more than the model reads
]


@dataclass(frozen=True)
class Exported:
    """A run, and its student as it was exported."""

    run_dir: Path
    out: Path
    line: dict


@pytest.fixture(scope="module")
def as_wide(reference: Reference, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """A student as wide as its teacher, by GKD-CLS, with all that can be exported."""
    return export(reference.run_dir, tmp_path_factory.mktemp("wide"), "--onnx", "--latency", "--rounds", "1")


@pytest.fixture(scope="module")
def projected(world: World, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """A student half as wide as its teacher, behind the teacher's embedding: ELECTRA's shape."""
    folder = tmp_path_factory.mktemp("narrow")
    arguments = [
        *world.student(folder / "run", "method=kd", "train.max_steps=5"),
        "student.architecture=electra", "student.layers=null", "student.shape.hidden_size=16",
        "student.shape.num_hidden_layers=2", "student.shape.num_attention_heads=2",
        "student.shape.intermediate_size=32",
    ]  # fmt: skip
    done = launch("train.py", arguments, logs=folder / "logs")
    assert done.processes[0].returncode == 0, done.text()
    return export(folder / "run", folder)


def export(run_dir: Path, folder: Path, *more: str) -> Exported:
    out = folder / "student"
    done = launch("export.py", [str(run_dir), "--out", str(out), *more], logs=folder / "logs-export")
    assert done.processes[0].returncode == 0, done.text()
    assert "Warning" not in done.stderr(), "libraries talk of themselves"
    assert "Traceback" not in done.stderr()
    return Exported(run_dir, out, last_json(done.stdout()))


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An interpreter with the packages of this one, but for what is installed by a .pth file: this project is."""
    folder = tmp_path_factory.mktemp("fresh") / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True, timeout=120)
    (packages,) = folder.glob("lib/python*/site-packages")
    # the lines of an added folder's own .pth files are not read
    (packages / "others.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    return folder / "bin" / "python"


def run_fresh(python: Path, *words: str, cwd: Path) -> str:
    """What the interpreter prints; it sees neither the checkout nor the hub."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    variables = {**kept, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(
        [str(python), *words],
        cwd=cwd,
        env=variables,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def check_fresh(python: Path, exported: Exported, texts: list[list[str]], folder: Path) -> dict:
    (folder / "texts.json").write_text(json.dumps(texts), encoding="utf-8")
    loader = str(Path(__file__).with_name("fresh_loader.py"))
    said = json.loads(run_fresh(python, loader, str(exported.out), str(folder / "texts.json"), cwd=folder))
    assert said["distill_dist"] is False
    model = exported.run_dir / "model"
    tokenizer = AutoTokenizer.from_pretrained(model)
    columns = [list(column) for column in zip(*texts, strict=True)]
    inputs = tokenizer(*columns, padding=True, truncation=True, max_length=64, return_tensors="pt")
    assert inputs["input_ids"].shape[1] == 64, "no text is as long as the model reads"
    ours = AutoModelForSequenceClassification.from_pretrained(model)
    with torch.no_grad():
        logits = ours(**inputs).logits
    assert len(set(logits.argmax(dim=1).tolist()) | {tuple(row) for row in logits.tolist()}) > len(texts)
    assert torch.tensor(said["logits"]).equal(logits)
    assert said["labels"] == ["entailment", "neutral", "contradiction"]
    assert said["max_length"] == 64
    for row, shown in zip(logits, said["said"], strict=True):
        scores = {each["label"]: each["score"] for each in shown}
        assert scores.keys() == set(said["labels"])
        best = max(scores, key=lambda label: scores[label])
        assert best == said["labels"][int(row.argmax())]
    return said


@pytest.mark.parametrize("student", ["as_wide", "projected"])
def test_it_loads_where_this_project_is_not(
    python: Path, student: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    exported: Exported = request.getfixturevalue(student)
    check_fresh(python, exported, PAIRS, tmp_path)
    config = json.loads((exported.out / "config.json").read_text(encoding="utf-8"))
    if student == "projected":
        assert (config["model_type"], config["embedding_size"], config["hidden_size"]) == ("electra", 32, 16)
        check_fresh(python, exported, [row[:1] for row in PAIRS], tmp_path)  # single texts
    else:
        (program,) = re.findall(r"```python\n(.*?)```", (exported.out / "README.md").read_text("utf-8"), re.S)
        assert "'label'" in run_fresh(python, "-c", program, cwd=exported.out.parent)


def test_what_the_launcher_says(as_wide: Exported) -> None:
    line, card = as_wide.line, ModelCard.load(as_wide.out / "README.md")
    dev = line["splits"]["dev"]
    summary = json.loads((as_wide.run_dir / "summary.json").read_text(encoding="utf-8"))
    assert dev["student"]["accuracy"]["value"] == summary["student"]["accuracy"]
    assert dev["loyalty"]["ll"]["value"] == summary["loyalty"]["ll"]
    low, high = dev["loyalty"]["sl_spearman_norm"]["interval"]
    assert low < dev["loyalty"]["sl_spearman_norm"]["value"] < high
    assert line["onnx"]["largest_difference"] <= line["onnx"]["tolerance"]
    assert [each["name"] for each in line["latency"]["contenders"]][0] == "teacher"
    (result,) = card.data.eval_results
    assert result.metric_value == pytest.approx(summary["student"]["accuracy"], abs=1e-6)
    for path in as_wide.out.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            for place in (str(REPOSITORY), str(as_wide.run_dir.parent), sys.prefix):
                assert place.encode() not in content, (path, place)


def test_a_kill_leaves_the_old_export_or_none(as_wide: Exported, tmp_path: Path) -> None:
    out = tmp_path / "out" / "student"
    words = [str(as_wide.run_dir), "--out", str(out), "--no-evaluate"]
    command = [sys.executable, str(REPOSITORY / "launcher" / "export.py"), *words]
    from tiny import environment

    started = start([command], [environment()], logs=tmp_path / "logs", port=0)
    wait_until(
        lambda: list(out.parent.glob(".student.*.tmp/model.safetensors")),
        what="the copy",
        timeout_s=120,
        every_s=0.001,
    )
    started.processes[0].send_signal(signal.SIGKILL)
    started.processes[0].wait()
    assert not out.exists()
    assert list(out.parent.glob(".student.*.tmp"))
    done = launch("export.py", words, logs=tmp_path / "logs-again")
    assert done.processes[0].returncode == 0, done.text()
    assert [path.name for path in out.parent.iterdir()] == ["student"]
    assert state(as_wide.run_dir)["state"] == "done"

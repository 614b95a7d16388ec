"""Exported students, and what they say in another environment."""

from __future__ import annotations

import json
import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from tiny import World, last_json, launch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

LABELS = ["entailment", "neutral", "contradiction"]
PAIRS = [
    ["anna is taller than bob", "bob is taller than anna"],
    ["every dog sleeps", "no dog sleeps and no cat sleeps"],
    ["anna", "bob"],
    ["anna is taller than bob " * 40, "bob " * 40],  # more than the model reads
]
TEXTS = [PAIRS, [row[:1] for row in PAIRS]]


@dataclass(frozen=True)
class Exported:
    """A run, its student as it was exported, and the line that was printed."""

    run_dir: Path
    out: Path
    line: dict[str, Any]


def export(run_dir: Path, folder: Path, *more: str) -> Exported:
    """By the launcher, into ``folder/student``."""
    out = folder / "student"
    done = launch("export.py", [str(run_dir), "--out", str(out), *more], logs=folder / "logs-export")
    assert done.processes[0].returncode == 0, done.text()
    assert "Warning" not in done.stderr(), "libraries talk of themselves"
    return Exported(run_dir, out, last_json(done.stdout()))


def export_projected(world: World, folder: Path) -> Exported:
    """A student half as wide as its teacher, behind the teacher's embedding: ELECTRA's shape."""
    arguments = [
        *world.student(folder / "run", "method=kd", "train.max_steps=5"),
        "student.architecture=electra", "student.layers=null", "student.shape.hidden_size=16",
        "student.shape.num_hidden_layers=2", "student.shape.num_attention_heads=2",
        "student.shape.intermediate_size=32",
    ]  # fmt: skip
    done = launch("train.py", arguments, logs=folder / "logs")
    assert done.processes[0].returncode == 0, done.text()
    exported = export(folder / "run", folder)
    config = json.loads((exported.out / "config.json").read_text(encoding="utf-8"))
    assert (config["model_type"], config["embedding_size"], config["hidden_size"]) == ("electra", 32, 16)
    return exported


def check_elsewhere(python: Path, exported: Exported, folder: Path) -> None:
    """The interpreter cannot import this project, and says of pairs and single texts what this one says of the run's
    own model: the same logits to the last bit, where torch and transformers are the same."""
    said = _ask(python, exported, folder)
    assert said["distill_dist"] is False
    assert (said["labels"], said["max_length"]) == (LABELS, exported.line["max_length"])
    assert "'label'" in said["printed"], "the card's own program"
    same = said["versions"] == [torch.__version__, transformers.__version__]
    print(f"\nelsewhere: torch, transformers {said['versions']}{'' if same else ', others than here'}")
    for texts, theirs, labelled in zip(TEXTS, said["logits"], said["said"], strict=True):
        ours = _logits(exported.run_dir / "model", texts, exported.line["max_length"])
        assert len({tuple(row) for row in ours.tolist()}) == len(texts), "rows that no bug could confuse"
        # another version may add in another order: fp32 over a few layers
        tolerance = {"rtol": 0, "atol": 0} if same else {"rtol": 1e-5, "atol": 1e-5}
        torch.testing.assert_close(torch.tensor(theirs), ours, **tolerance)
        for row, scores in zip(ours, labelled, strict=True):
            assert {each["label"] for each in scores} == set(LABELS)
            best = max(scores, key=lambda each: each["score"])
            assert best["label"] == LABELS[int(row.argmax())]


def programs_of(exported: Exported) -> list[str]:
    """Those of the card: how the model is used, and how its ONNX file is."""
    return re.findall(r"```python\n(.*?)```", (exported.out / "README.md").read_text("utf-8"), re.S)


def _ask(python: Path, exported: Exported, folder: Path) -> dict[str, Any]:
    program, *_ = programs_of(exported)
    (folder / "asked.json").write_text(json.dumps({"texts": TEXTS, "program": program}), encoding="utf-8")
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    variables = {**kept, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    loader = Path(__file__).with_name("fresh_loader.py")
    done = subprocess.run(
        [str(python), str(loader), str(exported.out), str(folder / "asked.json")],
        cwd=folder, env=variables, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def _logits(model: Path, texts: list[list[str]], max_length: int) -> torch.Tensor:
    """Of the run's own model, cut to what it was trained with."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    columns = [list(column) for column in zip(*texts, strict=True)]
    inputs = tokenizer(*columns, padding=True, truncation=True, max_length=max_length, return_tensors="pt")
    assert inputs["input_ids"].shape[1] == max_length, "no text is too long"
    with torch.no_grad():
        logits: torch.Tensor = AutoModelForSequenceClassification.from_pretrained(model)(**inputs).logits
    return logits

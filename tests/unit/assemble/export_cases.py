"""A finished run over a few prepared rows, written by the product's own writers but for the training."""

from __future__ import annotations

import functools
import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import torch

from distill_dist.assemble.models import build_student
from distill_dist.config.load import dump_config, load_config
from distill_dist.config.schema import RunConfig
from distill_dist.data.manifest import TOKENIZER_FOLDER, load_manifest
from distill_dist.data.prepare import prepare
from distill_dist.models.build import random_student
from distill_dist.run_folder import RunFolder

PAIRS = ("data.source=synthetic_nli", "data.synthetic.train_rows=20")
LABELS = ("bad | `worst`\n---", "good")  # of the task with single texts


def prepare_pairs(folder: Path, *, dev_rows: int = 10) -> list[str]:
    """Arguments of a generated corpus below ``folder``, the prepared folder last."""
    return _prepared(
        [*PAIRS, f"data.synthetic.dev_rows={dev_rows}", "data.synthetic.max_steps=1", "data.max_length=32"],
        folder,
    )


def prepare_texts(folder: Path) -> list[str]:
    """Arguments of a few rows of one text each, with hostile names of classes; the corpus' own tokenizer."""
    for split, rows in (("train", 12), ("dev", 6)):
        lines = [json.dumps({"said": "anna is taller " * (1 + n % 4), "class": n % 2}) for n in range(rows)]
        (folder / f"{split}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    tokenizer = Path(prepare_pairs(folder / "other")[-1].partition("=")[2]) / TOKENIZER_FOLDER
    return _prepared(
        [
            "data.source=jsonl", f"data.path={folder}", "data.splits={train: train.jsonl, dev: dev.jsonl}",
            "data.text_columns=[said]", "data.label_column=class", f"data.labels={json.dumps(LABELS)}",
            f"data.tokenizer={tokenizer}", "data.max_length=32",
        ],
        folder,
    )  # fmt: skip


def _prepared(arguments: list[str], folder: Path) -> list[str]:
    arguments = [*arguments, f"data.prepared={folder / 'prepared'}"]
    prepare(load_config(None, arguments, need="prepare").data, progress=False)
    return arguments


def write_run(folder: Path, data: list[str], *more: str, method: str = "kd") -> RunConfig:
    """A run of ``data`` that is done, with a teacher of 2 layers beside it; its student was never trained."""
    teacher = folder.parent / "teacher" / "model"
    arguments = [
        *data, f"method={method}", f"run_dir={folder}", f"teacher.path={teacher}", f"student.path={teacher}",
        "student.layers=1", "cluster.device=cpu", "cluster.threads=1", *more,
    ]  # fmt: skip
    config = load_config(None, arguments, need="evaluate")
    prepared = Path(config.data.prepared)
    with torch.random.fork_rng():
        if not teacher.exists():
            _export(RunFolder(teacher.parent), _teacher(prepared), prepared)
        student = build_student(config, load_manifest(prepared)).model
    best = _export(RunFolder(folder), student, prepared)
    (folder / "config.yaml").write_text(dump_config(config), encoding="utf-8")
    scores = {"accuracy": 0.5, "loss": 1.0, "ece": 0.1, "ll": 0.6, "pl": 0.7}
    _write(folder / "summary.json", {
        "task": "synthetic_nli" if config.data.source == "synthetic_nli" else config.data.task,
        "method": method, "seed": 0, "zero_stage": 1, "world": {"students": 2, "teachers": 1},
        "steps": 9, "best_step": best["step"], "student": {"parameters": 1, "accuracy": 0.5},
        "teacher": {"parameters": 4321, "accuracy": 0.75},
        "loyalty": {"ll": 0.6, "pl": 0.7, "sl_spearman_norm": 0.5}, "splits": {"dev": scores},
    })  # fmt: skip
    _write(folder / "state.json", {"state": "done", "time": 0.0})
    _write(folder / "versions.json", {"python": "3.11.7", "commit": "c0ffee"})
    command = ["/opt/venv/bin/python", "launcher/train.py", "--config", f"{folder.parent}/kd.yaml"]
    _write(folder / "command.json", {"command": command, "folder": str(folder.parent)})
    return config


def _teacher(prepared: Path) -> Any:
    manifest = load_manifest(prepared)
    shape = {"model_type": "bert", "num_hidden_layers": 2, "hidden_size": 16, "num_attention_heads": 2}
    torch.manual_seed(100)
    return random_student(
        {**shape, "intermediate_size": 32, "initializer_range": 0.3, "max_position_embeddings": 32},
        vocab_size=manifest.vocab_size,
        pad_token_id=manifest.pad_token_id,
        labels=manifest.labels,
    )


def _export(run: RunFolder, model: Any, prepared: Path) -> dict[str, Any]:
    best = {"step": 7, "value": 0.5}
    save = functools.partial(shutil.copytree, prepared / TOKENIZER_FOLDER, dirs_exist_ok=True)
    return run.export(model, model.state_dict(), save, best=best)


def _write(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content), encoding="utf-8")


def contents(folder: Path) -> dict[str, str]:
    """Digest of every file below ``folder``."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }

"""The main job on one CUDA device, fp32 and bf16; the teacher inside the student's process."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
SMALL = [
    "data.synthetic.train_rows=512",
    "data.synthetic.dev_rows=64",
    "cluster.device=cuda",
    "train.epochs=1",
]


def run(name: str, folder: Path, *overrides: str, config: str) -> dict:
    command = [
        sys.executable,
        str(ROOT / "launcher" / f"{name}.py"),
        "--config",
        str(ROOT / "configs" / config),
    ]
    command += [*SMALL, f"data.prepared={folder / 'prepared'}", *overrides]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.gpu
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_distils_on_one_gpu(tmp_path: Path, precision: str, stage: int) -> None:
    run("prepare", tmp_path, config="demo.yaml")
    run("train", tmp_path, f"run_dir={tmp_path / 'teacher'}", config="demo_teacher.yaml")
    summary = run(
        "train",
        tmp_path,
        f"run_dir={tmp_path / 'student'}",
        f"teacher.path={tmp_path / 'teacher' / 'model'}",
        "cluster.teachers=0",
        f"train.precision={precision}",
        f"deepspeed_config=ds_configs/zero{stage}.json",
        config="demo.yaml",
    )
    assert summary["zero_stage"] == stage
    assert 0 < summary["student"]["accuracy"] <= 1
    assert summary["student"]["loss"] == summary["student"]["loss"]  # not NaN


# BERT-base but for the corpus's small vocabulary, and the student that GKD cuts from it.
BERT_BASE = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
}


@pytest.mark.gpu
@pytest.mark.parametrize("route", ["double_backward", "central_difference"])
def test_the_probe_at_bert_base(tmp_path: Path, route: str, record_property: Any) -> None:
    """Its gradient is right; its seconds are reported (the aim on a GPU is below one)."""
    run("prepare", tmp_path, config="demo.yaml")
    shape = [f"student.shape.{key}={value}" for key, value in BERT_BASE.items()]
    teacher, student = tmp_path / "teacher", tmp_path / "student"
    run(
        "train",
        tmp_path,
        f"run_dir={teacher}",
        "train.learning_rate=1e-4",
        *shape,
        config="demo_teacher.yaml",
    )
    summary = run(
        "train",
        tmp_path,
        f"run_dir={student}",
        f"teacher.path={teacher / 'model'}",
        "student.layers=6",
        "cluster.teachers=0",
        "train.learning_rate=1e-4",
        f"alignment.route={route}",
        config="demo.yaml",
    )
    probe = summary["alignment"]["probe"]
    record_property("probe_seconds", probe["seconds"])
    assert summary["alignment"]["route"] == route
    assert probe["aligned_error"] < 0.02

"""The real job's own command lines, for a few steps: SST-2 rows, MiniLM as the encoder, 2 students and 1 teacher."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open
from tiny import DEEPSPEED, environment, free_port

ROOT = Path(__file__).resolve().parents[2]
LIMIT_S = 600


def run(command: list[str], shared: Path) -> dict[str, Any]:
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=environment(DISTILL_SHARED=str(shared.parent)),
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    found = [line for line in done.stdout.splitlines() if line.startswith("{")]
    summary: dict[str, Any] = json.loads(found[-1])
    return summary


@pytest.mark.realdata
@pytest.mark.timeout(3 * LIMIT_S)
def test_gkd_cls_on_real_rows_with_a_real_encoder(tmp_path: Path, shared_data: Path) -> None:
    prepared = f"data.prepared={tmp_path / 'prepared'}"
    teacher, student = tmp_path / "teacher", tmp_path / "student"
    config = ["--config", "configs/gkd_sst2_minilm.yaml"]
    counts = run([sys.executable, "launcher/prepare.py", *config, prepared], shared_data)
    assert counts["rows"] == {"train": 67349, "dev": 872}
    common = [prepared, "evaluate.saliency=false", "cluster.threads=1"]
    run(
        [
            *[sys.executable, "launcher/train.py", "--config", "configs/teacher_sst2_minilm.yaml"],
            *[*common, f"run_dir={teacher}", "train.max_steps=3"],
        ],
        shared_data,
    )
    summary = run(
        [
            *[str(DEEPSPEED), "--num_gpus", "3", "--master_port", str(free_port()), "launcher/train.py"],
            *[
                *config,
                *common,
                f"run_dir={student}",
                f"teacher.path={teacher / 'model'}",
                "train.max_steps=3",
            ],
        ],
        shared_data,
    )
    assert summary["world"] == {"students": 2, "teachers": 1}
    assert summary["method"] == "gkd_cls"
    assert summary["teacher"]["parameters"] == 22_713_986  # MiniLM and a classifier of 2 classes
    assert summary["student"]["parameters"] == 17_390_594  # 3 of its 6 layers
    assert summary["throughput"]["real_token_share"] >= 0.85
    name = "bert.embeddings.word_embeddings.weight"
    layer = "bert.encoder.layer.0.output.dense.weight"
    with (
        safe_open(str(teacher / "model" / "model.safetensors"), "pt") as theirs,
        safe_open(str(student / "model" / "model.safetensors"), "pt") as ours,
    ):
        assert (theirs.get_tensor(layer) != ours.get_tensor(layer)).any(), "the student did not learn"
        assert (theirs.get_tensor(name) == ours.get_tensor(name)).all(), (
            "the copied embeddings are not frozen"
        )

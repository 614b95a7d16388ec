"""Facts of a card, of which a test changes some."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from distill_dist.export.facts import (
    CardFacts,
    Measured,
    OnnxFacts,
    SplitFigures,
    SplitSource,
    TeacherFacts,
)
from distill_dist.export.latency import Contender, LatencyTable, Timing

DEV = SplitFigures(
    "dev",
    872,
    {"accuracy": Measured(0.91, (0.89, 0.93)), "loss": Measured(0.25, (0.2, 0.3))},
    {"accuracy": Measured(0.93, (0.91, 0.95))},
    {"ll": Measured(0.96, (0.95, 0.97)), "pl": Measured(0.94, None)},
    {"negative": {"precision": Measured(0.9), "recall": Measured(0.8), "f1": Measured(0.85)}},
)
FACTS = CardFacts(
    name="small",
    task="sst2",
    metric="accuracy",
    columns=("sentence",),
    labels=("negative", "positive"),
    method="gkd",
    parameters=17_400_000,
    architecture="bert, 3 layers of width 384",
    weights_sha256="ab" * 32,
    max_length=128,
    settings=(("temperature", "5"),),
    splits=(DEV,),
    intervals="95% intervals over rows (percentile bootstrap, 1000 draws)",
    sources=(SplitSource("train", 67349, 1_000_000, 12, "train.tsv (tsv), sha256 cd"),),
    manifest="ef" * 32,
    teachers=(TeacherFacts("/home/user/work/runs/teacher/model", "01" * 32, "bert, 6 layers of width 384"),),
    teacher_parameters=22_700_000,
    teacher_missing=False,
    command=(
        "/home/user/.venv/bin/python",
        "/home/user/.venv/bin/deepspeed",
        "--num_gpus",
        "3",
        "launcher/train.py",
        "--config",
        "/home/user/work/configs/a.yaml",
        "run_dir=/home/user/runs/x/y",
    ),
    command_folder="/home/user/work",
    versions={"torch": "2.13.0"},
    limits=("It has limits.",),
)
_TIMING = {1: Timing(1.0, 2.0, 1000.0), 32: Timing(10.0, 12.0, 3200.0)}
LATENCY = LatencyTable(
    (Contender("student", _TIMING, 69_600_000, 17_400_000, 0.91),), 1, 5, {1: 64, 32: 256}, 20.0, "A | CPU"
)
ONNX = OnnxFacts(
    "onnx/model.onnx", 64, 1e-6, 8e-6, 872, 2e-6, {"accuracy": 0.91}, 1.0,
    "onnx/model_int8.onnx", 0.3, {"accuracy": 0.905}, 0.99, {"onnxruntime": "1.32.0"},
)  # fmt: skip


def facts(**changes: Any) -> CardFacts:
    return replace(FACTS, **changes)

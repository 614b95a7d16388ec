"""Run folders as runs leave them, of chosen content: written by the product's own writers where those need no model."""

from __future__ import annotations

import functools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from distill_dist.config.load import dump_config, load_config
from distill_dist.curriculum.scores import COLUMN_TYPES, Columns
from distill_dist.curriculum.snapshot_record import Origin
from distill_dist.curriculum.snapshot_writer import SnapshotWriter
from distill_dist.curriculum.study import LAMBDA_EDGES, confidence_edges, histogram
from distill_dist.evaluation.predictions import Predictions, write_predictions
from distill_dist.telemetry import Telemetry

LABELS = ("negative", "positive")
HOSTILE = '<script>alert("x")</script> & <img src=x onerror=alert(1)>'
ROWS = 400
EPOCHS, STEPS = 4, 50


def write_run(
    folder: Path,
    *,
    method: str = "gkd",
    seed: int = 0,
    accuracy: float = 0.9,
    task: str = "sst2",
    overrides: tuple[str, ...] = (),
    predictions: bool = True,
    curriculum: bool = False,
    examples: bool = False,
    points: bool = True,
) -> Path:
    """A finished run whose student is right on about ``accuracy`` of ROWS rows; rows that are hard are hard for all."""
    folder.mkdir(parents=True)
    text = _config(method, task, overrides)
    text = text.replace("\nseed: 0\n", f"\nseed: {seed}\n").replace("run_dir: r\n", f"run_dir: {folder}\n")
    (folder / "config.yaml").write_text(text, encoding="utf-8")
    said = _predictions(accuracy, seed)
    right = said.student_NC.argmax(1) == said.labels_N
    assert said.teacher_NC is not None
    scores = {
        "accuracy": float(right.mean()),
        "loss": 0.4,
        "ll": float((said.student_NC.argmax(1) == said.teacher_NC.argmax(1)).mean()),
        "pl": 0.91,
    }
    write(folder / "summary.json", summary(method=method, seed=seed, task=task, scores=scores))
    write(folder / "state.json", {"state": "done", "time": 1.7e9 + seed})
    write(folder / "versions.json", {"python": "3.11.7", "torch": "2.13.0", "commit": "c0ffee"})
    command = ["deepspeed", "--num_gpus", "3", "launcher/train.py", f"method={method}", f"seed={seed}"]
    write(folder / "command.json", {"command": command, "folder": "/somewhere"})
    if points:
        _points(folder / "tensorboard", scores, seed=seed, curriculum=curriculum)
    if curriculum:
        write_snapshot(folder / "snapshots")
    if predictions:
        write_evaluation(folder, said, scores)
    if examples:
        write(folder / "saliency.json", saliency())
    return folder


@functools.cache
def _config(method: str, task: str, overrides: tuple[str, ...]) -> str:
    """Resolved, as a run writes it; half a second."""
    data = ("data.source=tsv", f"data.task={task}", "data.path=d", "data.prepared=p")
    paths = ("run_dir=r", "student.path=s", "teacher.path=t")
    return dump_config(load_config(None, [f"method={method}", *data, *paths, *overrides], need="evaluate"))


def write(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content), encoding="utf-8")


def summary(*, method: str, seed: int, task: str, scores: dict[str, float]) -> dict[str, Any]:
    return {
        "task": task,
        "method": method,
        "seed": seed,
        "zero_stage": 1,
        "world": {"students": 2, "teachers": 1},
        "steps": EPOCHS * STEPS,
        "best_step": EPOCHS * STEPS,
        "student": {
            "parameters": 17_400_000,
            "accuracy": scores["accuracy"],
            "f1": None,
            "loss": scores["loss"],
        },
        "teacher": {"parameters": 22_700_000, "accuracy": 0.93, "loss": 0.2},
        "loyalty": {"ll": scores["ll"], "pl": scores["pl"], "sl_spearman_norm": 0.85},
        "splits": {"dev": scores},
        "throughput": {
            "samples_per_s": 130.0 + seed, "tokens_per_s": 1800.0, "real_token_share": 0.98,
            "teacher_wait_share": 0.01 * seed,
        },
        "alignment": {"route": "double_backward", "reason": "exact, and the cheaper one"},
    }  # fmt: skip


def _predictions(accuracy: float, seed: int) -> Predictions:
    rows = np.random.default_rng(7)
    labels = rows.integers(0, 2, ROWS)
    hard = rows.random(ROWS)
    own = np.random.default_rng(seed + 1000)
    wrong = hard + 0.05 * own.standard_normal(ROWS) > accuracy
    sure = 0.6 + 0.35 * own.random(ROWS)
    first = np.where(labels == 0, sure, 1 - sure)
    first = np.where(wrong, 1 - first, first)
    teacher = np.where(labels == 0, 0.95, 0.05)
    teacher = np.where(hard > 0.93, 1 - teacher, teacher)
    return Predictions(labels, np.stack([first, 1 - first], 1), np.stack([teacher, 1 - teacher], 1), more={})


def write_evaluation(folder: Path, said: Predictions, scores: dict[str, float]) -> None:
    (folder / "predictions").mkdir()
    write_predictions(folder / "predictions" / "dev.tsv", said)
    of_split = {
        "rows": ROWS,
        "student": {"accuracy": scores["accuracy"], "loss": 0.4, "ece": 0.05},
        "teacher": {"accuracy": 0.93},
        "loyalty": {"ll": scores["ll"], "pl": scores["pl"]},
        "intervals": {"student": {"accuracy": [scores["accuracy"] - 0.03, scores["accuracy"] + 0.03]}},
    }
    files = {"dev": {"file": "predictions/dev.tsv", "sha256": "x"}}
    record = {"splits": {"dev": of_split}, "data": {"manifest": "m"}, "predictions": files}
    write(folder / "evaluation.json", record)


def _points(folder: Path, scores: dict[str, float], *, seed: int, curriculum: bool) -> None:
    telemetry = Telemetry(
        folder, terms=("cross_entropy",), rank=0, students=1, sum_=lambda tensor: tensor,
        device=torch.device("cpu"), total_steps=EPOCHS * STEPS, start_step=0, progress=False,
    )  # fmt: skip
    rng = np.random.default_rng(seed)
    for step in range(10, EPOCHS * STEPS + 1, 10):
        noise = 0.05 * rng.random()
        telemetry.write(
            step,
            {
                "loss/cross_entropy": 0.7 / (1 + step / 60) + noise,
                "loss/distillation": 0.3 / (1 + step / 90) + noise,
                "throughput/samples_per_s": 130 + 20 * noise,
                "throughput/teacher_wait_share": noise,
            },
        )
    for epoch in range(1, EPOCHS + 1):
        value = scores["accuracy"] - 0.2 / epoch**2
        telemetry.write(epoch * STEPS, {"dev/accuracy": value, "dev/ll": value - 0.02})
    for epoch in range(EPOCHS) if curriculum else ():
        _curriculum_points(telemetry, epoch, rng)
    telemetry.close()


def _curriculum_points(telemetry: Telemetry, epoch: int, rng: np.random.Generator) -> None:
    edges = confidence_edges("true_probability", 2)
    confidence = histogram(rng.beta(1 + epoch, 1, ROWS), edges)
    reliance = histogram(rng.random(ROWS), LAMBDA_EDGES)
    telemetry.histograms(
        epoch * STEPS,
        {"curriculum/confidence": (confidence, edges), "curriculum/reliance": (reliance, LAMBDA_EDGES)},
    )
    deciles = {f"exposure/decile_{part:02d}": max(0.0, 1 - part / 10 + epoch / 3) for part in range(1, 11)}
    scalars = {
        "curriculum/admitted_share": 0.25 * (epoch + 1),
        "admitted/negative": 0.4,
        "admitted/positive": 0.6,
    }
    telemetry.write(epoch * STEPS, {**deciles, **scalars, "curriculum/moved_share": 0.5 / (epoch + 1)})


def write_snapshot(root: Path, *, sizes: tuple[int, ...] = (150, 250)) -> Path:
    """One snapshot whose rows were seen three times."""
    writer = SnapshotWriter(root, 3)
    writer.begin()
    entries = []
    for block, rows in enumerate(sizes):
        rng = np.random.default_rng(block)
        mean = rng.beta(3, 1, rows)
        values = {
            "score": mean, "loss": -np.log(mean), "mean": mean, "m2": 3 * (0.4 * mean * (1 - mean)),
            "teacher_loss": np.full(rows, 0.1), "count": np.full(rows, 3),
            "predicted": np.ones(rows), "forgotten": rng.integers(0, 3, rows),
        }  # fmt: skip
        columns = Columns(**{name: values[name].astype(dtype) for name, dtype in COLUMN_TYPES.items()})
        entries.append(writer.write_block(block, columns))
    origin = Origin(step=150, measure="true_probability", smoothing=0.5, manifest="m" * 64, parent="")
    return writer.commit(entries, replace(origin, run="r"), keep=9, in_use=frozenset())


def saliency() -> dict[str, Any]:
    """Two rows, one with a text that would be code on a page."""
    tokens = ["[CLS]", "a", "dull", "##ish", HOSTILE, "[SEP]"]
    view = {
        "probabilities": [0.2, 0.8],
        "norm": [0.1, 0.2, 3.0, 1.0, 0.5, 0.0],
        "dot": [0.0, 0.1, -2.0, 1.0, 0.3, 0.0],
    }
    other = {**view, "probabilities": [0.7, 0.3], "norm": [0.4, 0.2, 0.1, 0.1, 2.0, 0.0]}
    row = {"row": 3, "label": 0, "tokens": tokens, "teacher": other, "student": view, "correlation": 0.12}
    return {
        "format": 1,
        "split": "dev",
        "chosen": "most different in Spearman's correlation of ‖g‖",
        "labels": [*LABELS],
        "rows": [row, {**row, "row": 9, "correlation": None}],
    }


def write_many(root: Path, *, seeds: int, methods: dict[str, float], task: str = "sst2") -> list[Path]:
    """``seeds`` runs of every method around its accuracy; the first seed of each with a curriculum and examples."""
    return [
        write_run(
            root / f"{method}-{task}-{seed}",
            method=method,
            seed=seed,
            task=task,
            accuracy=accuracy,
            curriculum=seed == 0,
            examples=seed == 0,
        )
        for method, accuracy in methods.items()
        for seed in range(seeds)
    ]

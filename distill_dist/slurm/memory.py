"""What a student and a teacher will need of their device, estimated from the configuration alone."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from distill_dist.config.deepspeed_json import load_deepspeed_json, zero_stage
from distill_dist.config.methods import is_aligned
from distill_dist.config.schema import RunConfig
from distill_dist.errors import UserError
from distill_dist.hub import PACKAGE_PREFIX, locate
from distill_dist.slurm.model_size import ModelSize, size_of_shape, size_on_disk

# Activations against those of plain distillation (measured, README): double backward, central difference.
_TWICE = {"double_backward": 2.1, "central_difference": 3.1}


@dataclass(frozen=True)
class Estimate:
    """Bytes on one device. ``activations`` is rough, the others follow from the sizes."""

    name: str
    parameters: int
    weights: int
    gradients: int
    moments: int
    activations: int

    def __str__(self) -> str:
        total = self.weights + self.gradients + self.moments + self.activations
        parts = ", ".join(
            f"{name} {_gib(getattr(self, name))}"
            for name in ("weights", "gradients", "moments", "activations")
            if getattr(self, name)
        )
        return f"{self.name}: about {_gib(total)} GiB ({self.parameters / 1e6:.1f} M parameters; {parts})"


def estimate(config: RunConfig, *, students: int) -> list[str]:
    """One line per kind of process."""
    own = _student_size(config)
    if own is None:
        source = config.student.path or config.data.prepared
        lines = [f"student: unknown until {source!r} can be read here"]
    else:
        lines = [str(_student(config, *own, students=students))]
    paths = [entry.path for entry in config.teachers] or [config.teacher.path]
    lines += [_teacher_line(config, path) for path in paths if config.method != "finetune"]
    if config.cluster.teachers:
        lines.append(f"a teacher's host: up to {config.teacher.cache_mib} MiB of signals (teacher.cache_mib)")
    return lines


def _teacher_line(config: RunConfig, path: str) -> str:
    size = _on_disk(path)
    if size is None:
        return f"teacher: unknown until {path!r} can be read here"
    return f"{_teacher(config, size)}" + ("" if config.cluster.teachers else ", beside each student")


def _student(config: RunConfig, size: ModelSize, layers: int, *, students: int) -> Estimate:
    total = size.total(layers)
    trained = total - size.embeddings if config.student.freeze_embeddings else total
    stage = zero_stage(load_deepspeed_json(Path(config.deepspeed_config)))
    number = 2 if config.train.precision == "bf16" else 4
    masters = 4 if number == 2 else 0
    moments = (8 if config.train.optimizer == "adamw" else 0) + masters
    return Estimate(
        "student",
        total,
        weights=number * total // (students if stage == 3 else 1),
        gradients=number * trained // (students if stage >= 2 else 1),
        moments=moments * trained // (students if stage >= 1 else 1),
        activations=_activations(config, size, layers, tokens=config.batch.micro_tokens, number=number)
        * _routes(config) // 10,
    )  # fmt: skip


def _routes(config: RunConfig) -> int:
    """Tenths."""
    if not is_aligned(config):
        return 10
    route = "double_backward" if config.alignment.route == "auto" else config.alignment.route
    return round(10 * _TWICE[route])


def _teacher(config: RunConfig, size: ModelSize) -> Estimate:
    total = size.total()
    kept = size.layers if is_aligned(config) else 1  # without gradients a layer's are gone after it
    tokens = config.teacher.batch_tokens
    weights = 0 if config.teacher.offload else 4 * total // config.teacher.shards
    return Estimate(
        "teacher", total, weights=weights, gradients=0, moments=0,
        activations=_activations(config, size, kept, tokens=tokens, number=4),
    )  # fmt: skip


def _activations(config: RunConfig, size: ModelSize, layers: int, *, tokens: int, number: int) -> int:
    """s·b·h·(34 + 5·a·s/h) bytes a layer at two bytes a number (Korthikanti et al., arXiv 2205.05198, eq. 1)."""
    longest = max(config.data.max_length, config.batch.pad_to)
    per_token = 34 * size.hidden + 5 * size.heads * longest
    checkpoints = 2 * size.hidden * tokens * layers
    if config.student.checkpointing and layers > 1:
        return (checkpoints + per_token * tokens) * number // 2
    return per_token * tokens * layers * number // 2


def _on_disk(path: str) -> ModelSize | None:
    if not path or not (Path(path).is_dir() or path.startswith(PACKAGE_PREFIX)):
        return None  # the hub is not asked: a login node answers at once
    try:
        return size_on_disk(Path(locate(path, what="model")))
    except UserError:
        return None


def _student_size(config: RunConfig) -> tuple[ModelSize, int] | None:
    """The student's sizes and its layers."""
    if config.student.path:
        found = _on_disk(config.student.path)
        return None if found is None else (found, config.student.layers or found.layers)
    try:
        prepared = Path(config.data.prepared)
        classes = len(json.loads((prepared / "manifest.json").read_text(encoding="utf-8"))["labels"])
        tokenizer = json.loads((prepared / "tokenizer" / "tokenizer.json").read_text(encoding="utf-8"))
        vocabulary = len(tokenizer["model"]["vocab"])
    except (OSError, ValueError, KeyError):
        return None
    shape = config.student.shape
    return size_of_shape(shape, vocabulary=vocabulary, classes=classes), shape.num_hidden_layers


def _gib(number: int) -> str:
    return f"{number / 2**30:.2f}"

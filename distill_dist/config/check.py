"""Ranges of single fields and rules between fields. Every rule yields lines; nothing stops at the first.

:data:`RANGES` is the one place that says which numbers a field takes; the reference prints its words.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from distill_dist.config.check_alignment import check_alignment
from distill_dist.config.check_curriculum import check_curriculum
from distill_dist.config.check_data import check_data
from distill_dist.config.check_pool import check_pool
from distill_dist.config.check_teacher import check_teacher
from distill_dist.config.check_tokens import check_other_tokens, check_teacher_tokens
from distill_dist.config.deepspeed_json import load_deepspeed_json
from distill_dist.config.fields import describe_problem as _problem
from distill_dist.config.fields import schema_fields, value_at
from distill_dist.config.methods import is_gradient_method, matches_states
from distill_dist.config.schema import RunConfig
from distill_dist.errors import UserError

Need = Literal["prepare", "train", "cache", "evaluate"]
"""Which launcher asks: rules on parts that it does not read are left out."""


@dataclass(frozen=True)
class Range:
    """Finite numbers from ``low`` to ``high``; an `open` end is not in it."""

    low: float
    high: float = math.inf
    low_open: bool = False
    high_open: bool = False

    def __contains__(self, value: float) -> bool:
        above = value > self.low if self.low_open else value >= self.low
        below = value < self.high if self.high_open else value <= self.high
        return above and below and math.isfinite(value)

    @property
    def words(self) -> str:
        """As a user would say it: `at least 1`, `above 0`, `0 to below 1`."""
        if self.high == math.inf:
            return f"above {self.low}" if self.low_open else f"at least {self.low}"
        low = f"above {self.low}" if self.low_open else f"{self.low}"
        return f"{low} to {'below ' if self.high_open else ''}{self.high}"


# Far above all use, and far below where a product of two leaves int64; a row's key has nine digits.
_MOST = 10**9
_COUNT = Range(1, _MOST)
_COUNT_OR_NONE = Range(0, _MOST)
_LAYERS = Range(1, 1000)
_WIDTH = Range(1, 65536)
_SHARE = Range(0, 1)
_SECONDS = Range(0, 10**7, low_open=True)  # four months
_SEED = Range(0, 2**32 - 1)  # numpy takes no larger one

RANGES: dict[str, Range] = {
    "seed": _SEED,
    "data.max_length": Range(8, 8192),
    "data.teacher_max_length": Range(8, 8192),
    "data.hold_out": _COUNT,
    "data.max_rows": _COUNT_OR_NONE,
    "data.draw_seed": _SEED,
    "data.rows_per_shard": _COUNT,
    "data.window_shards": _COUNT_OR_NONE,
    "data.synthetic.train_rows": _COUNT,
    "data.synthetic.dev_rows": _COUNT,
    "data.synthetic.max_steps": Range(1, 6),
    "data.synthetic.label_noise": _SHARE,
    "data.synthetic.seed": _SEED,
    "student.shape.hidden_size": _WIDTH,
    "student.shape.num_hidden_layers": _LAYERS,
    "student.shape.num_attention_heads": _WIDTH,
    "student.shape.intermediate_size": Range(1, 4 * 65536),
    "student.shape.max_position_embeddings": Range(16, 10**6),  # teacher/compute.py fills up to as many
    "student.shape.initializer_range": Range(0, low_open=True),
    "student.layers": _LAYERS,
    "student.layer_list": _LAYERS,
    "student.dropout": Range(0, 1, high_open=True),
    "teacher.shards": Range(1, 4096),
    "teacher.prefetch": Range(1, 256),
    "cluster.silence_s": _SECONDS,
    "teacher.deadline_s": _SECONDS,
    "teacher.patience_s": _SECONDS,
    "teacher.lease_s": _SECONDS,
    "teacher.rest_after_s": _SECONDS,
    "teacher.check_every_s": _SECONDS,
    "teacher.batch_tokens": _COUNT,
    "teacher.cache_mib": Range(0, _MOST),
    "teacher.cache_dir_mib": Range(0, _MOST),
    "weight.kd": _SHARE,
    "weight.patience": Range(0),
    "weight.gradient": Range(0),
    "weight.attribution": Range(0),
    "weight.noise": Range(0),
    "objective.temperature": Range(0, low_open=True),
    "objective.teacher_layers": _LAYERS,
    "objective.student_layers": _LAYERS,
    "objective.attribution_top_k": Range(0, 65536),
    "objective.noise_std": Range(0, low_open=True),
    "objective.noise_draws": Range(1, 64),
    "alignment.share": Range(0, 1, low_open=True),
    "alignment.step": Range(0, 0.1, low_open=True),
    "alignment.tolerance": Range(0, low_open=True),
    "curriculum.smoothing": Range(0, 1, high_open=True),
    "curriculum.start": Range(0, 1, low_open=True),
    "curriculum.full_at": Range(0, low_open=True),
    "curriculum.power": Range(0, low_open=True),
    "curriculum.increase": Range(1, low_open=True),
    "curriculum.increase_every": _COUNT,
    "curriculum.buckets": Range(1, 256),
    "curriculum.memory_mib": Range(16, _MOST),
    "curriculum.keep_snapshots": _COUNT,
    "reliance.initial": _SHARE,
    "reliance.minimum": _SHARE,
    "reliance.maximum": Range(0, 1, low_open=True),
    "reliance.threshold": _SHARE,
    "batch.size": _COUNT,
    "batch.micro_tokens": _COUNT,
    "batch.length_window": _COUNT,
    "batch.pad_to": _COUNT_OR_NONE,
    "train.learning_rate": Range(0, low_open=True),
    "train.weight_decay": Range(0),
    "train.warmup_share": _SHARE,
    "train.epochs": _COUNT,
    "train.max_steps": _COUNT_OR_NONE,
    "train.clip_norm": Range(0),
    "train.checkpoint_every": _COUNT_OR_NONE,
    "train.keep_last": _COUNT,
    "train.keep_best": _COUNT_OR_NONE,
    "train.log_every": _COUNT,
    "cluster.teachers": _COUNT_OR_NONE,
    "cluster.threads": Range(0, 4096),
    "cluster.rendezvous_s": _SECONDS,
    "cluster.collective_s": _SECONDS,
    "cluster.end_margin_s": Range(0, 10**6),
}
"""Dotted key -> the numbers it takes; for a list, each of its entries."""


def check_config(config: RunConfig, *, need: Need = "train") -> list[str]:
    """One line per problem of a tree whose method-dependent fields are filled in; empty when all is well.

    With ``need="train"`` the file `deepspeed_config` is read too, and `run_dir` is required.
    """
    rules: list[Callable[[RunConfig], Iterator[str]]] = [_ranges, _prepared]
    if need != "evaluate":  # which reads only what was prepared
        rules += [check_data, check_teacher_tokens]
    if need in ("train", "cache"):
        rules += [_student_source, _student_layers, _method, _matched_layers, check_alignment, _batch]
        rules += [check_curriculum, check_teacher, check_pool, check_other_tokens]
    if need == "train":
        rules.append(_run)
    # Other rules look at the files that the texts name.
    return list(_texts(config)) or [problem for rule in rules for problem in rule(config)]


def _ranges(config: RunConfig) -> Iterator[str]:
    for key, allowed in RANGES.items():
        value = value_at(config, key)
        if isinstance(value, dict):
            value = tuple(value.values())
        numbers: Sequence[Any] = value if isinstance(value, tuple) else () if value is None else (value,)
        if not all(number in allowed for number in numbers):
            entries = "every entry " if isinstance(value, tuple) else ""
            yield _problem(config, key, f"{entries}must be {allowed.words}")


def _texts(config: RunConfig) -> Iterator[str]:
    for key in schema_fields():
        value = value_at(config, key)
        if isinstance(value, dict):
            value = (*value, *value.values())
        texts = value if isinstance(value, tuple) else (value,)
        texts = tuple(getattr(text, "path", text) for text in texts)
        if any(isinstance(text, str) and "\0" in text for text in texts):
            yield _problem(config, key, "holds a NUL character, which no name of a file or column can")


def _prepared(config: RunConfig) -> Iterator[str]:
    if not config.data.prepared:
        yield _problem(config, "data.prepared", "required: the folder that launcher/prepare.py fills")


def _student_source(config: RunConfig) -> Iterator[str]:
    student, shape = config.student, config.student.shape
    if student.path:
        return
    if shape.num_attention_heads > 0 and shape.hidden_size % shape.num_attention_heads:
        key = "student.shape.hidden_size"
        heads = shape.num_attention_heads
        yield _problem(config, key, f"must be a multiple of student.shape.num_attention_heads = {heads}")
    if shape.max_position_embeddings < config.data.max_length:
        text = f"must be at least data.max_length = {config.data.max_length}"
        yield _problem(config, "student.shape.max_position_embeddings", text)
    if student.architecture != "same":
        yield _problem(config, "student.architecture", "needs student.path: the BERT that fills it")
    if student.layers is not None:
        yield _problem(config, "student.layers", "needs student.path; else shape.num_hidden_layers counts")
    if student.freeze_embeddings:
        text = "needs student.path (random embeddings must be trained)"
        if is_gradient_method(config.method):
            text += f"; true is what {config.method} derives: give a path, or set it to false"
        yield _problem(config, "student.freeze_embeddings", text)


def _student_layers(config: RunConfig) -> Iterator[str]:
    student = config.student
    if student.layer_copy != "list":
        if student.layer_list:
            yield _problem(config, "student.layer_list", f"needs layer_copy: list, not {student.layer_copy}")
        return
    if not student.path:
        yield _problem(config, "student.layer_copy", "needs student.path: the model whose layers are copied")
    if len(student.layer_list) != student.layers:
        text = f"student.layers = {student.layers or 'null'}; both must count the same layers"
        yield _problem(config, "student.layer_list", text)
    if not _increasing(student.layer_list):
        yield _problem(config, "student.layer_list", "must be strictly increasing")


def _method(config: RunConfig) -> Iterator[str]:
    method = config.method
    if method == "finetune":
        if config.cluster.teachers > 0:
            yield _problem(config, "cluster.teachers", "method finetune asks no teacher; must be 0")
    elif not config.teacher.path:
        yield _problem(config, "teacher.path", f"required with method: {method}")


def _matched_layers(config: RunConfig) -> Iterator[str]:
    objective, student = config.objective, config.student
    if len(objective.teacher_layers) != len(objective.student_layers):
        others = list(objective.student_layers)
        text = f"as many as objective.student_layers = {others}, or both empty"
        yield _problem(config, "objective.teacher_layers", text)
    for key in ("objective.teacher_layers", "objective.student_layers"):
        if not _increasing(value_at(config, key)):
            yield _problem(config, key, "must be strictly increasing")
    own_shape = not student.path or student.architecture == "electra"
    layers = student.shape.num_hidden_layers if own_shape else student.layers
    if layers is None:
        return
    if max(objective.student_layers, default=0) > layers:
        yield _problem(config, "objective.student_layers", f"the student has {layers} layers")
    if matches_states(config.method) and layers == 1 and not objective.student_layers:
        text = f"empty means 1 to layers - 1, and the student has one layer; {config.method} needs some"
        yield _problem(config, "objective.student_layers", text)


def _increasing(numbers: Sequence[int]) -> bool:
    return all(a < b for a, b in pairwise(numbers))


def _batch(config: RunConfig) -> Iterator[str]:
    batch, max_length = config.batch, config.data.max_length
    if 0 < batch.pad_to < max_length:
        yield _problem(config, "batch.pad_to", f"must be 0 or at least data.max_length = {max_length}")
    longest = max(max_length, batch.pad_to)
    if batch.micro_tokens < longest:
        name = "data.max_length" if longest == max_length else "batch.pad_to"
        yield _problem(config, "batch.micro_tokens", f"one row must fit: at least {name} = {longest}")


def _run(config: RunConfig) -> Iterator[str]:
    if not config.run_dir:
        yield _problem(config, "run_dir", "required: the folder of everything the run writes")
    else:
        yield from _run_dir(config)
    try:
        load_deepspeed_json(Path(config.deepspeed_config))
    except UserError as error:
        yield from str(error).splitlines()


def _run_dir(config: RunConfig) -> Iterator[str]:
    """The run writes nothing over its own input. Links are followed; a hub name is no folder."""
    run_dir = Path(os.path.realpath(config.run_dir))
    paths = {key: value_at(config, key) for key in ("teacher.path", "student.path")}
    paths |= {f"teachers[{n}].path": entry.path for n, entry in enumerate(config.teachers) if n}
    for key, path in paths.items():
        if os.path.isdir(path) and Path(os.path.realpath(path)).is_relative_to(run_dir):
            yield f"{key} = {path!r}: lies in run_dir = {config.run_dir!r}, which the run overwrites"
    if not config.data.prepared:
        return
    prepared = Path(os.path.realpath(config.data.prepared))
    if run_dir.is_relative_to(prepared) or prepared.is_relative_to(run_dir):
        text = f"must not be data.prepared = {config.data.prepared!r}, nor lie in it, nor around it"
        yield _problem(config, "run_dir", text)

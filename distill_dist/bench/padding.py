"""What grouping by length buys: the same steps of the same student under three ways of padding."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from distill_dist.assemble.models import build_student
from distill_dist.assemble.objective import build_objective
from distill_dist.config.schema import RunConfig
from distill_dist.curriculum.order import RandomOrder
from distill_dist.data.loader import StepLoader
from distill_dist.data.manifest import load_manifest
from distill_dist.data.prepare import prepare
from distill_dist.data.shards import open_split
from distill_dist.records import Step
from distill_dist.student import StudentStep


@dataclass
class _Way:
    steps: Iterator[Step]
    seconds: list[float] = field(default_factory=list)
    rows: int = 0
    real: int = 0
    computed: int = 0


def measure_padding(config: RunConfig, *, steps: int, progress: Callable[[str], None]) -> dict[str, Any]:
    """Real-token share and samples per second of `finetune` steps, for windows, random batches and fixed length.

    The ways take turns, a step each, in one process; the optimizer is left out, it does not depend on padding.
    Seconds are those of the median step.
    """
    prepare(config.data)
    prepared = Path(config.data.prepared)
    manifest, split = load_manifest(prepared), open_split(prepared, "train")
    parts = build_student(config, manifest)
    student = StudentStep(parts, build_objective(config, parts, None))
    longest = config.data.max_length
    choices = {
        "length_window": (config.batch.length_window, 0),
        "random_batches": (1, 0),
        "fixed_length": (1, longest),
    }
    ways = {}
    for name, (window, pad_to) in choices.items():
        loader = StepLoader(
            split=split,
            rows_at=RandomOrder(split.num_rows, config.seed).rows_at,
            rank=0,
            size=1,
            seed=config.seed,
            batch_size=config.batch.size,
            window=window,
            micro_tokens=max(config.batch.micro_tokens, config.batch.size * longest),
            pad_token_id=manifest.pad_token_id,
            pad_to=pad_to,
        )
        ways[name] = _Way(loader.steps(epochs=config.train.epochs))
    for number, (name, way) in itertools.product(range(steps), ways.items()):
        _take(student, way)
        progress(f"{name} {number + 1}/{steps}")
    return {
        "benchmark": "padding",
        "rows": split.num_rows,
        "batch": config.batch.size,
        "steps": steps,
        "ways": {name: _figures(way) for name, way in ways.items()},
        "speed_up_over_random": _median(ways["random_batches"]) / _median(ways["length_window"]),
        "speed_up_over_fixed": _median(ways["fixed_length"]) / _median(ways["length_window"]),
    }


def _take(student: StudentStep, way: _Way) -> None:
    begin = time.perf_counter()
    step = next(way.steps)
    for batch in step.batches:
        student.loss_terms(batch, None).total(step.counts).backward()  # type: ignore[no-untyped-call]
        way.computed += batch.input_ids_BL.numel()
    for parameter in student.parts.model.parameters():
        parameter.grad = None
    way.seconds.append(time.perf_counter() - begin)
    way.rows += step.counts.sequences
    way.real += step.counts.tokens


def _median(way: _Way) -> float:
    return statistics.median(way.seconds)


def _figures(way: _Way) -> dict[str, float]:
    return {
        "real_token_share": way.real / way.computed,
        "step_ms": 1000 * _median(way),
        "samples_per_s": way.rows / len(way.seconds) / _median(way),
    }

"""The signals that a run will ask for, computed before it and kept on disk."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from distill_dist.assemble.device import pick_device
from distill_dist.assemble.models import build_student, check_prepared
from distill_dist.assemble.objective import build_objective
from distill_dist.assemble.saliency_of_run import asks_saliency
from distill_dist.assemble.signal_cache_of_run import check_cache_dir, signal_cache
from distill_dist.assemble.teacher_pool import check_pool_fits, joining, teacher_shapes
from distill_dist.assemble.teacher_worker import build_computer, check_teaches
from distill_dist.comm.environment import LaunchEnvironment, read_environment
from distill_dist.config.pool import as_only_teacher, is_pool, naming_the_model, teachers_of
from distill_dist.config.schema import RunConfig
from distill_dist.data.loader import evaluation_batches
from distill_dist.data.manifest import Manifest, load_manifest
from distill_dist.data.shards import open_split
from distill_dist.errors import UserError
from distill_dist.evaluation.split import LOGITS, SALIENCY
from distill_dist.records import Batch, SignalSpec
from distill_dist.teacher.cached import cached_rows, keyed_request
from distill_dist.teacher.row_computer import RowComputer
from distill_dist.teacher.signal_cache import SignalCache

_log = logging.getLogger(__name__)
# Rows that are grouped by length together.
CHUNK_ROWS = 8192


def fill_cache(config: RunConfig, progress: Callable[[str], None]) -> dict[str, Any]:
    """Compute what ``config``'s run will ask of its teachers; this process's share where a launcher started several.

    Returns `rows`, those of dev once for logits and once for saliency, and how many of them were `cached` before it;
    `bytes` that the folder has now, `seconds`, `teachers`. Raises UserError.
    """
    if not config.teacher.cache_dir:
        raise UserError("teacher.cache_dir is empty: name the folder that the signals are to be kept in")
    check_cache_dir(config.teacher)
    launch = read_environment(os.environ)
    manifest = load_manifest(Path(config.data.prepared))
    check_prepared(config, manifest)
    questions = tuple(_questions(config, manifest))
    begin = time.monotonic()
    found: dict[str, Any] = {"rows": 0, "cached": 0, "bytes": 0, "teachers": []}
    for number in range(len(teachers_of(config))):
        with naming_the_model(config, number):
            filled, about = _fill_of(as_only_teacher(config, number), manifest, launch, questions, progress)
        found |= {name: found[name] + filled[name] for name in ("rows", "cached")}
        found["bytes"] = filled["bytes"]  # of the whole folder, whoever filled it
        found["teachers"].append(about)
    return {**found, "seconds": time.monotonic() - begin}


def _fill_of(
    config: RunConfig,
    manifest: Manifest,
    launch: LaunchEnvironment,
    questions: Sequence[tuple[str, SignalSpec]],
    progress: Callable[[str], None],
) -> tuple[dict[str, int], dict[str, Any]]:
    """(`rows`, `cached` before, `bytes` of the folder; who the only model of ``config`` is). Raises UserError."""
    compute = build_computer(config, pick_device(config.cluster.device, launch.local_rank))
    check_teaches(compute, config)
    found = {"rows": 0, "cached": 0}
    with contextlib.closing(signal_cache(config.teacher, compute.fingerprint, in_memory=False)) as cache:
        if not cache.can_write:
            raise UserError(
                f"teacher.cache_dir={config.teacher.cache_dir} cannot be written: see the warning above"
            )
        for split, spec in questions:
            for batch in _batches(config, manifest, split, launch):
                rows, cached = _fill(cache, compute, batch, spec)
                found["rows"] += rows
                found["cached"] += cached
                progress(f"{split}: {found['rows']} rows, {found['cached']} of them there already")
    counters = cache.counters()
    if cache.has_failed or counters["written"] < found["rows"] - found["cached"]:
        raise UserError(
            f"teacher.cache_dir={config.teacher.cache_dir} took not all rows: see the warning above"
        )
    return {**found, "bytes": counters["disk_bytes"]}, compute.describe()


def _questions(config: RunConfig, manifest: Manifest) -> Iterator[tuple[str, SignalSpec]]:
    """(split, what the run asks about its rows, of every model)."""
    shapes = teacher_shapes(config)
    student = build_student(config, manifest)
    objective = build_objective(config, student, shapes[0])
    check_pool_fits(config, student, shapes)
    saliency = asks_saliency(config, shapes)
    for split, spec in _asked(config, manifest, objective.signal_spec, saliency=saliency):
        yield split, joining(config).asked(spec) if is_pool(config) else spec


def _asked(
    config: RunConfig, manifest: Manifest, spec: SignalSpec | None, *, saliency: bool
) -> Iterator[tuple[str, SignalSpec]]:
    """What the run asks its teacher; ``spec`` for training."""
    if spec is not None:
        yield "train", spec
        if spec.gradients and config.alignment.share < 1:
            yield "train", spec.without_gradients  # of the rows that are not aligned in a step
    if config.curriculum.source == "teacher":
        yield "train", LOGITS
    for split in manifest.splits:
        if split != "train":
            yield split, LOGITS
    if saliency:
        yield "dev", SALIENCY


def _batches(config: RunConfig, manifest: Manifest, split: str, launch: LaunchEnvironment) -> Iterator[Batch]:
    rows = open_split(Path(config.data.prepared), split)
    for number, first in enumerate(range(0, rows.num_rows, CHUNK_ROWS)):
        if number % launch.world_size == launch.rank:
            yield from evaluation_batches(
                rows,
                rank=0,
                size=1,
                micro_tokens=config.teacher.batch_tokens,
                pad_token_id=manifest.pad_token_id,
                rows=np.arange(first, min(first + CHUNK_ROWS, rows.num_rows)),
            )


def _fill(cache: SignalCache, compute: RowComputer, batch: Batch, spec: SignalSpec) -> tuple[int, int]:
    """(rows of ``batch``, of them in the cache already); the others are computed and kept."""
    request = keyed_request(batch, spec, fingerprint=compute.fingerprint, types=compute.types)
    _, computed = cached_rows(request, spec, cache, compute)
    return len(request.keys_B), len(request.keys_B) - computed

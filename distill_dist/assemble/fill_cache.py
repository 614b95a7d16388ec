"""The signals that a run will ask for, computed before it and kept on disk."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from distill_dist.assemble.device import pick_device
from distill_dist.assemble.models import build_student, check_prepared, teacher_shape
from distill_dist.assemble.objective import build_objective
from distill_dist.assemble.teacher_worker import build_computer
from distill_dist.comm.environment import LaunchEnvironment, read_environment
from distill_dist.config.schema import RunConfig
from distill_dist.data.loader import evaluation_batches
from distill_dist.data.manifest import Manifest, load_manifest
from distill_dist.data.shards import open_split
from distill_dist.errors import UserError
from distill_dist.evaluation.split import LOGITS, SALIENCY
from distill_dist.records import Batch, SignalSpec
from distill_dist.teacher.row_computer import RowComputer
from distill_dist.teacher.row_keys import row_keys, signal_context
from distill_dist.teacher.signal_cache import SignalCache
from distill_dist.teacher.wire import pack_request

_log = logging.getLogger(__name__)
# Rows that are grouped by length together.
CHUNK_ROWS = 8192


def fill_cache(config: RunConfig, progress: Callable[[str], None]) -> dict[str, Any]:
    """Compute what ``config``'s run will ask of its teacher; this process's share where a launcher started several.

    Returns `rows` and `cached` before it, `bytes` written, `seconds`. Raises UserError.
    """
    if not config.teacher.cache_dir:
        raise UserError("teacher.cache_dir is empty: name the folder that the signals are to be kept in")
    launch = read_environment(os.environ)
    manifest = load_manifest(Path(config.data.prepared))
    check_prepared(config, manifest)
    compute = build_computer(config, pick_device(config.cluster.device, launch.local_rank))
    context = bytes.fromhex(compute.fingerprint)
    begin = time.monotonic()
    found = {"rows": 0, "cached": 0}
    with contextlib.closing(SignalCache(0, Path(config.teacher.cache_dir), context=context)) as cache:
        for split, spec in _questions(config, manifest):
            for batch in _batches(config, manifest, split, launch):
                rows, cached = _fill(cache, compute, batch, spec)
                found["rows"] += rows
                found["cached"] += cached
                progress(f"{split}: {found['rows']} rows, {found['cached']} of them there already")
    counters = cache.counters()
    if counters["written"] < found["rows"] - found["cached"]:
        raise UserError(
            f"teacher.cache_dir={config.teacher.cache_dir} took not all rows: see the warning above"
        )
    return {
        **found,
        "bytes": counters["disk_bytes"],
        "seconds": time.monotonic() - begin,
        "teacher": compute.describe(),
    }


def _questions(config: RunConfig, manifest: Manifest) -> Iterator[tuple[str, SignalSpec]]:
    """(split, what the run asks about its rows)."""
    objective = build_objective(config, build_student(config, manifest), teacher_shape(config))
    spec = objective.signal_spec
    if spec is not None:
        yield "train", spec
        if spec.gradients and config.alignment.share < 1:
            yield "train", spec.without_gradients  # of the rows that are not aligned in a step
    if config.curriculum.source == "teacher":
        yield "train", LOGITS
    for split in manifest.splits:
        if split != "train":
            yield split, LOGITS
    if config.evaluate.saliency:
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
    request = pack_request(batch, labels=spec.needs_labels)
    context = signal_context(compute.fingerprint, spec, compute.types)
    keys = row_keys(
        request.input_ids_BL, request.lengths_B, request.token_type_ids_BL, request.labels_B, context=context
    )
    request = replace(request, keys_B=tuple(keys))
    known = dict(zip(keys, cache.get_many(keys), strict=True))
    # one text may stand in several rows: it is computed and kept once
    first = {key: row for row, key in reversed(list(enumerate(keys)))}
    missing = sorted(row for key, row in first.items() if known[key] is None)
    if missing:
        asked = request.take(missing)
        cache.put_many(asked.keys_B, compute(asked, spec))
    return len(keys), len(keys) - len(missing)

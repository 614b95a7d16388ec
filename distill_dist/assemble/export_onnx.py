"""The student as ONNX, in fp32 and int8, held against PyTorch on the rows of dev."""

from __future__ import annotations

import math
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from distill_dist.config.schema import RunConfig
from distill_dist.data.collate import collate
from distill_dist.data.loader import evaluation_batches
from distill_dist.data.manifest import Manifest
from distill_dist.data.shards import PreparedSplit, open_split
from distill_dist.evaluation.metrics import task_summed, values_of
from distill_dist.evaluation.summed import Floats
from distill_dist.export.facts import OnnxFacts
from distill_dist.export.onnx_check import check_onnx
from distill_dist.export.onnx_model import FOLDER, INT8, MODEL, OnnxClassifier, export_onnx, quantize_int8
from distill_dist.extras import EXTRAS
from distill_dist.models.encoder import EncoderParts
from distill_dist.records import Batch

CHECKED_ROWS, CHECKED_AT_ONCE = 64, 8
_SEED = 0  # of how the checked rows are mixed


def write_onnx(config: RunConfig, manifest: Manifest, student: EncoderParts, folder: Path) -> OnnxFacts:
    """Both files in ``folder``, and how far they are from ``student``, which is on the CPU. Raises UserError."""
    dev = open_split(Path(config.data.prepared), "dev")
    (folder / FOLDER).mkdir()
    path, int8 = folder / FOLDER / MODEL, folder / FOLDER / INT8
    threads = torch.get_num_threads()
    sample = np.resize(np.arange(min(2, dev.num_rows)), 2)
    export_onnx(student, _batch(dev, sample, manifest), path)
    onnx = OnnxClassifier(path, student, threads=threads)
    agreement = check_onnx(student, onnx.logits_BC, checked_batches(dev, manifest))
    quantize_int8(path, int8)
    small = OnnxClassifier(int8, student, threads=threads)
    theirs, ours, rounded = (
        _logits_NC(run, dev, config, manifest)
        for run in (lambda batch: student.logits_BC(*batch.inputs), onnx.logits_BC, small.logits_BC)
    )
    return OnnxFacts(
        file=f"{FOLDER}/{MODEL}",
        checked_rows=agreement.rows,
        largest_difference=agreement.largest_difference,
        tolerance=agreement.tolerance,
        dev_rows=dev.num_rows,
        dev_difference=float(np.abs(ours - theirs).max()),
        dev=_figures(ours, dev, manifest),
        agreement=_same_labels(ours, theirs),
        int8_file=f"{FOLDER}/{INT8}",
        int8_difference=float(np.abs(rounded - theirs).max()),
        int8=_figures(rounded, dev, manifest),
        int8_agreement=_same_labels(rounded, theirs),
        versions={package: metadata.version(package) for package in ("torch", *EXTRAS["onnx"])},
    )


def checked_batches(dev: PreparedSplit, manifest: Manifest) -> list[Batch]:
    """Rows of all lengths, mixed, so that most are padded; one row stands alone."""
    by_length = np.argsort(dev.lengths, kind="stable")
    chosen = np.unique(np.linspace(0, dev.num_rows - 1, min(CHECKED_ROWS, dev.num_rows)).astype(int))
    rows = np.random.default_rng(_SEED).permutation(by_length[chosen])
    starts = range(1, len(rows), CHECKED_AT_ONCE)
    parts = [rows[:1], *(rows[first : first + CHECKED_AT_ONCE] for first in starts)]
    return [_batch(dev, part, manifest) for part in parts]


def _batch(dev: PreparedSplit, rows: np.ndarray, manifest: Manifest) -> Batch:
    return collate(dev.read(rows), pad_token_id=manifest.pad_token_id)


def _logits_NC(
    run: Callable[[Batch], Tensor], dev: PreparedSplit, config: RunConfig, manifest: Manifest
) -> Floats:
    found = np.zeros((dev.num_rows, len(manifest.labels)))
    batches = evaluation_batches(
        dev, rank=0, size=1, micro_tokens=config.batch.micro_tokens, pad_token_id=manifest.pad_token_id
    )
    with torch.inference_mode():
        for batch in batches:
            found[batch.ids_B.numpy()] = run(batch).numpy()
    return found


def _figures(logits_NC: Floats, dev: PreparedSplit, manifest: Manifest) -> dict[str, float]:
    """Those that have a value on these rows: F1 has none without any row of class 1."""
    found = values_of(task_summed(logits_NC, dev.labels, metric=manifest.metric))
    return {name: value for name, value in found.items() if math.isfinite(value)}


def _same_labels(left_NC: Floats, right_NC: Floats) -> float:
    return float((left_NC.argmax(axis=1) == right_NC.argmax(axis=1)).mean())

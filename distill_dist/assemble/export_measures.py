"""What an export computes on dev: ONNX against PyTorch, and how long each model takes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from distill_dist.assemble.models import read_teacher
from distill_dist.config.schema import RunConfig
from distill_dist.data.collate import collate
from distill_dist.data.loader import evaluation_batches
from distill_dist.data.manifest import Manifest
from distill_dist.data.shards import PreparedSplit, open_split
from distill_dist.evaluation.metrics import task_summed, values_of
from distill_dist.evaluation.summed import Floats
from distill_dist.export.facts import CardFacts, OnnxFacts
from distill_dist.export.latency import (
    Contender,
    LatencyTable,
    processor_name,
    time_models,
)
from distill_dist.export.model_files import WEIGHTS
from distill_dist.export.onnx_check import check_onnx
from distill_dist.export.onnx_model import FOLDER, INT8, MODEL, OnnxClassifier, export_onnx, quantize_int8
from distill_dist.extras import EXTRAS
from distill_dist.models.build import set_attention
from distill_dist.models.encoder import EncoderParts
from distill_dist.records import Batch

Run = Callable[[Batch], Tensor]
CHECKED_ROWS, CHECKED_AT_ONCE = 64, 8
BATCHES = {1: 64, 32: 256}  # rows of a batch -> rows timed in a round
SEED = 0  # of the rows that are checked and timed


def write_onnx(config: RunConfig, manifest: Manifest, student: EncoderParts, folder: Path) -> OnnxFacts:
    """Both ONNX files in ``folder``, held against ``student``, which is on the CPU. Raises UserError."""
    dev = open_split(Path(config.data.prepared), "dev")
    (folder / FOLDER).mkdir()
    path, int8 = folder / FOLDER / MODEL, folder / FOLDER / INT8
    checked = _checked_batches(dev, manifest)
    export_onnx(student, _batch(dev, np.resize(np.arange(min(2, dev.num_rows)), 2), manifest), path)
    onnx = OnnxClassifier(path, student, threads=torch.get_num_threads())
    agreement = check_onnx(student, onnx.logits_BC, checked)
    quantize_int8(path, int8)
    small = OnnxClassifier(int8, student, threads=torch.get_num_threads())
    runs: dict[str, Run] = {"torch": of_torch(student), "onnx": onnx.logits_BC, "int8": small.logits_BC}
    said = {name: _logits_NC(run, dev, config, manifest) for name, run in runs.items()}
    figures = {
        name: values_of(task_summed(said[name], dev.labels, metric=manifest.metric))
        for name in ("onnx", "int8")
    }
    return OnnxFacts(
        file=f"{FOLDER}/{MODEL}",
        checked_rows=agreement.rows,
        largest_difference=agreement.largest_difference,
        tolerance=agreement.tolerance,
        dev_rows=dev.num_rows,
        dev_difference=float(np.abs(said["onnx"] - said["torch"]).max()),
        dev=figures["onnx"],
        agreement=_same_labels(said["onnx"], said["torch"]),
        int8_file=f"{FOLDER}/{INT8}",
        int8_difference=float(np.abs(said["int8"] - said["torch"]).max()),
        int8=figures["int8"],
        int8_agreement=_same_labels(said["int8"], said["torch"]),
        versions={package: metadata.version(package) for package in ("torch", *EXTRAS["onnx"])},
    )


def measure_latency(
    config: RunConfig,
    manifest: Manifest,
    facts: CardFacts,
    student: EncoderParts,
    folder: Path,
    *,
    teachers: Sequence[tuple[str, float, str]],
    rounds: int,
) -> LatencyTable:
    """The teachers, the student and what ONNX files lie in ``folder``, all on the CPU with as many threads."""
    threads = config.cluster.threads or torch.get_num_threads()
    torch.set_num_threads(threads)
    dev = open_split(Path(config.data.prepared), "dev")
    timed = np.random.default_rng(SEED).permutation(dev.num_rows)
    rows = {
        size: np.resize(timed, max(size, min(most, dev.num_rows // size * size)))
        for size, most in BATCHES.items()
    }
    batches = {
        size: [_batch(dev, part, manifest) for part in of_size.reshape(-1, size)]
        for size, of_size in rows.items()
    }
    teaching = _read_teachers(config, manifest, teachers)
    runs: dict[str, Run] = {"student": of_torch(student)}
    if teaching:
        runs = {"teacher": of_teachers(teaching), **runs}
    for name, file in (("student, ONNX", MODEL), ("student, int8", INT8)):
        if facts.onnx is not None:
            runs[name] = OnnxClassifier(folder / FOLDER / file, student, threads=threads).logits_BC
    with torch.inference_mode():
        timings = time_models(runs, batches, rounds=rounds)
    bytes_of, accuracy = _bytes(folder, teachers), _accuracies(facts)
    size = {"teacher": sum(_parameters(each) for each in teaching)}
    return LatencyTable(
        contenders=tuple(
            Contender(
                name, timings[name], bytes_of[name], size.get(name, facts.parameters), accuracy.get(name)
            )
            for name in runs
        ),
        threads=threads,
        rounds=rounds,
        rows={size: len(of_size) for size, of_size in rows.items()},
        mean_length=float(dev.lengths[np.concatenate([*rows.values()])].mean()),
        processor=processor_name(),
        missing=None if teaching or not facts.teachers else "The teacher was not at hand.",
    )


def of_torch(parts: EncoderParts) -> Run:
    """What runs the student on a batch."""

    def run(batch: Batch) -> Tensor:
        return parts.logits_BC(*batch.inputs)

    return run


def of_teachers(teachers: Sequence[EncoderParts]) -> Run:
    """What runs all teachers, one after another; the last one's logits."""

    def run(batch: Batch) -> Tensor:
        return [parts.logits_BC(*batch.teacher_inputs) for parts in teachers][-1]

    return run


def _read_teachers(
    config: RunConfig, manifest: Manifest, teachers: Sequence[tuple[str, float, str]]
) -> list[EncoderParts]:
    """On the CPU, in the kernel that `from_pretrained` takes by itself."""
    found = []
    for path, _, place in teachers:
        prepared = Path(config.data.prepared)
        parts = read_teacher(place, manifest, prepared, torch.device("cpu"), what="teacher", value=path)
        set_attention(parts.model, parts.attention_kernels[-1])
        found.append(parts)
    return found


def _accuracies(facts: CardFacts) -> dict[str, float]:
    """On dev, by contender."""
    dev = next((split for split in facts.splits if split.name == "dev"), None)
    found = {}
    if dev is not None:
        for name, figures in (("teacher", dev.teacher), ("student", dev.student)):
            if "accuracy" in figures:
                found[name] = figures["accuracy"].value
    if facts.onnx is not None:
        found |= {"student, ONNX": facts.onnx.dev["accuracy"], "student, int8": facts.onnx.int8["accuracy"]}
    return found


def _bytes(folder: Path, teachers: Sequence[tuple[str, float, str]]) -> dict[str, int]:
    """Of the weights on disk, by contender."""
    of_teachers = [path for _, _, place in teachers for path in Path(place).glob("*.safetensors")]
    files = {
        "teacher": of_teachers,
        "student": [folder / WEIGHTS],
        "student, ONNX": [folder / FOLDER / MODEL],
        "student, int8": [folder / FOLDER / INT8],
    }
    return {
        name: sum(path.stat().st_size for path in paths if path.exists()) for name, paths in files.items()
    }


def _parameters(parts: EncoderParts) -> int:
    return sum(each.numel() for each in parts.model.parameters())


def _checked_batches(dev: PreparedSplit, manifest: Manifest) -> list[Batch]:
    """Rows of all lengths, mixed, so that most are padded; one row stands alone."""
    by_length = np.argsort(dev.lengths, kind="stable")
    chosen = np.unique(np.linspace(0, dev.num_rows - 1, min(CHECKED_ROWS, dev.num_rows)).astype(int))
    rows = np.random.default_rng(SEED).permutation(by_length[chosen])
    parts = [
        rows[:1],
        *(rows[first : first + CHECKED_AT_ONCE] for first in range(1, len(rows), CHECKED_AT_ONCE)),
    ]
    return [_batch(dev, part, manifest) for part in parts]


def _batch(split: PreparedSplit, rows: np.ndarray, manifest: Manifest) -> Batch:
    return collate(split.read(rows), pad_token_id=manifest.pad_token_id)


def _logits_NC(run: Run, dev: PreparedSplit, config: RunConfig, manifest: Manifest) -> Floats:
    found = np.zeros((dev.num_rows, len(manifest.labels)))
    batches = evaluation_batches(
        dev, rank=0, size=1, micro_tokens=config.batch.micro_tokens, pad_token_id=manifest.pad_token_id
    )
    with torch.inference_mode():
        for batch in batches:
            found[batch.ids_B.numpy()] = run(batch).numpy()
    return found


def _same_labels(left_NC: Floats, right_NC: Floats) -> float:
    return float((left_NC.argmax(axis=1) == right_NC.argmax(axis=1)).mean())

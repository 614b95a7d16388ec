"""How long teacher, student and ONNX files take for rows of dev: one table, measured in one run on the CPU."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from distill_dist.assemble.models import read_teacher
from distill_dist.config.schema import RunConfig
from distill_dist.data.collate import collate
from distill_dist.data.manifest import Manifest
from distill_dist.data.shards import PreparedSplit, open_split
from distill_dist.export.facts import CardFacts
from distill_dist.export.latency import Contender, LatencyTable, Run, processor_name, time_models
from distill_dist.export.model_files import WEIGHTS
from distill_dist.export.onnx_model import FOLDER, INT8, MODEL, OnnxClassifier
from distill_dist.models.build import use_own_kernel
from distill_dist.models.encoder import EncoderParts
from distill_dist.records import Batch

TIMED = {1: 64, 32: 256}  # rows of a batch -> most rows timed in a round
_SEED = 0  # of which rows of dev those are
Teachers = Sequence[tuple[str, float, str]]  # path, weight, folder


def measure_latency(
    config: RunConfig,
    manifest: Manifest,
    facts: CardFacts,
    student: EncoderParts,
    folder: Path,
    *,
    teachers: Teachers,
    rounds: int,
) -> LatencyTable:
    """All of the teachers one after another, the student, and what ONNX files ``facts`` say lie in ``folder``.

    `cluster.threads` threads for each; 0: as many as torch takes.
    """
    threads = config.cluster.threads or torch.get_num_threads()
    torch.set_num_threads(threads)
    dev = open_split(Path(config.data.prepared), "dev")
    rows = timed_rows(dev.num_rows)
    batches = {size: _batches(dev, of_size.reshape(-1, size), manifest) for size, of_size in rows.items()}
    teaching = _read_teachers(config, manifest, teachers)
    runs: dict[str, Run] = {"student": lambda batch: student.logits_BC(*batch.inputs)}
    if teaching:
        runs = {"teacher": _all_of(teaching), **runs}
    if facts.onnx is not None:
        for name, file in (("student, ONNX", MODEL), ("student, int8", INT8)):
            runs[name] = OnnxClassifier(folder / FOLDER / file, student, threads=threads).logits_BC
    with torch.inference_mode():
        timings = time_models(runs, batches, rounds=rounds)
    bytes_of, accuracy = _bytes(folder, teachers), _accuracies(facts)
    parameters = {"teacher": sum(each.numel() for parts in teaching for each in parts.model.parameters())}
    contenders = (
        Contender(
            name, timings[name], bytes_of[name], parameters.get(name, facts.parameters), accuracy.get(name)
        )
        for name in runs
    )
    return LatencyTable(
        contenders=tuple(contenders),
        threads=threads,
        rounds=rounds,
        rows={size: len(of_size) for size, of_size in rows.items()},
        mean_length=float(dev.lengths[np.concatenate([*rows.values()])].mean()),
        processor=processor_name(),
        missing="The teacher was not at hand." if facts.teachers and not teaching else None,
    )


def timed_rows(num_rows: int) -> dict[int, np.ndarray]:
    """Rows of a batch -> numbers of the rows to time, whole batches; a small split's come again."""
    drawn = np.random.default_rng(_SEED).permutation(num_rows)
    return {
        size: np.resize(drawn, max(size, min(most, num_rows) // size * size)) for size, most in TIMED.items()
    }


def _batches(dev: PreparedSplit, rows: np.ndarray, manifest: Manifest) -> list[Batch]:
    """``rows``: [batches, rows of a batch]."""
    return [collate(dev.read(part), pad_token_id=manifest.pad_token_id) for part in rows]


def _all_of(teachers: Sequence[EncoderParts]) -> Callable[[Batch], Tensor]:
    def run(batch: Batch) -> Tensor:
        return [parts.logits_BC(*batch.teacher_inputs) for parts in teachers][-1]

    return run


def _read_teachers(config: RunConfig, manifest: Manifest, teachers: Teachers) -> list[EncoderParts]:
    prepared, cpu = Path(config.data.prepared), torch.device("cpu")
    found = [
        read_teacher(place, manifest, prepared, cpu, what="teacher", value=path)
        for path, _, place in teachers
    ]
    for parts in found:
        use_own_kernel(parts)
    return found


def _accuracies(facts: CardFacts) -> dict[str, float]:
    """On dev, by contender."""
    dev = next((split for split in facts.splits if split.name == "dev"), None)
    figures = {} if dev is None else {"teacher": dev.teacher, "student": dev.student}
    found = {name: of["accuracy"].value for name, of in figures.items() if "accuracy" in of}
    if facts.onnx is None:
        return found
    return {
        **found,
        "student, ONNX": facts.onnx.dev["accuracy"],
        "student, int8": facts.onnx.int8["accuracy"],
    }


def _bytes(folder: Path, teachers: Teachers) -> dict[str, int]:
    """Of the weights on disk, by contender."""
    files = {
        "teacher": [path for _, _, place in teachers for path in Path(place).glob("*.safetensors")],
        "student": [folder / WEIGHTS],
        "student, ONNX": [folder / FOLDER / MODEL],
        "student, int8": [folder / FOLDER / INT8],
    }
    return {
        name: sum(path.stat().st_size for path in paths if path.exists()) for name, paths in files.items()
    }

"""A student and its teacher as they are scored: read from their folders, alone in one process."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from distill_dist.assemble.models import check_tokenizer, check_vocabulary, read_teacher
from distill_dist.assemble.signal_cache_of_run import signal_cache
from distill_dist.assemble.teacher_pool import joined
from distill_dist.assemble.teacher_worker import computer_of
from distill_dist.config.pool import as_only_teacher, teachers_of
from distill_dist.config.schema import RunConfig
from distill_dist.config.schema_teacher import TeacherConfig
from distill_dist.data.manifest import Manifest
from distill_dist.errors import UserError
from distill_dist.hub import locate, weights_digest
from distill_dist.models.build import load_teacher, quiet_loading
from distill_dist.models.encoder import EncoderParts, encoder_parts
from distill_dist.models.hooks import embedding_output_BLH
from distill_dist.records import Batch
from distill_dist.teacher.cached import CachedTeacher
from distill_dist.teacher.local import LocalTeacher, Teacher


@dataclass(frozen=True)
class EvaluatedModels:
    """``teacher`` joins all models of the run; ``teacher_parts`` has every one's. ``described`` is for the record."""

    student: LocalTeacher
    student_parts: EncoderParts
    teacher: Teacher | None
    teacher_parts: tuple[EncoderParts, ...]
    teacher_missing: str | None  # why there is none, where the run has one
    device: torch.device
    described: dict[str, Any]

    def close(self) -> None:
        """What the teacher computed is kept where the run keeps its signals."""
        if self.teacher is not None:
            self.teacher.release(timeout_s=0.0)

    def embeds(self) -> tuple[Any, Any] | None:
        """What gives E of student and teacher; None with several teachers, which have no embedding in common."""
        if len(self.teacher_parts) != 1:
            return None

        def of(parts: EncoderParts) -> Any:
            def embed(batch: Batch) -> torch.Tensor:
                return embedding_output_BLH(parts, batch.to(self.device).inputs)

            return embed

        return of(self.student_parts), of(self.teacher_parts[0])


def read_models(
    config: RunConfig, manifest: Manifest, device: torch.device, *, student: str, teacher: str
) -> EvaluatedModels:
    """The classifier at ``student``, and ``teacher`` or the run's own; folders, hub names or `pkg://PACKAGE/FOLDER`.

    A teacher of the run that is not there any more is missing, one that was asked for is a UserError, and so is
    whatever does not fit the prepared data.
    """
    quiet_loading()
    folder = locate(student, what="student")
    student_parts = read_student(Path(config.data.prepared), manifest, folder, value=student, device=device)
    described: dict[str, Any] = {
        "student": {"path": student, "sha256": weights_digest(Path(folder))},
        "teachers": [],
    }
    teachers, missing = find_teachers(config, teacher)
    parts, members = [], []
    for number, (path, weight, place) in enumerate(teachers):
        prepared = Path(config.data.prepared)
        parts.append(read_teacher(place, manifest, prepared, device, what="teacher", value=path))
        alone = None if teacher else as_only_teacher(config, number)
        members.append(_member(alone, manifest, parts[-1], device))
        described["teachers"].append({"path": path, "weight": weight, "sha256": weights_digest(Path(place))})
    return EvaluatedModels(
        student=LocalTeacher(student_parts, device, is_student=True),
        student_parts=student_parts,
        teacher=joined(config, members) if members else None,
        teacher_parts=tuple(parts),
        teacher_missing=missing,
        device=device,
        described=described,
    )


def _member(
    config: RunConfig | None, manifest: Manifest, parts: EncoderParts, device: torch.device
) -> Teacher:
    """One teacher; one of the run (``config``: that with it alone) reads and fills the run's cache.

    Not a cache that rounds gradients: what is measured depends on no cache.
    """
    if config is None or not _keeps_all_bits(config.teacher):
        return LocalTeacher(parts, device)
    compute = computer_of(config, manifest, parts, device)
    return CachedTeacher(compute, signal_cache(config.teacher, compute.fingerprint))


def _keeps_all_bits(teacher: TeacherConfig) -> bool:
    folder = teacher.cache_dir
    return bool(folder) and os.access(folder, os.W_OK) and teacher.wire.embedding_gradients == "fp32"


def read_student(
    prepared: Path, manifest: Manifest, folder: str, *, value: str, device: torch.device
) -> EncoderParts:
    check_tokenizer(folder, prepared, what="student")
    model = load_teacher(folder, labels=manifest.labels, attention="eager", what="the student")
    check_vocabulary(model.config, manifest, what="student", value=value)
    return encoder_parts(model.to(device))


def find_teachers(config: RunConfig, asked: str = "") -> tuple[list[tuple[str, float, str]], str | None]:
    """((path, weight, folder) of every teacher, why there is none); of ``asked`` alone where it is given."""
    if asked:
        return [(asked, 1.0, locate(asked, what="teacher"))], None
    found = []
    for each in teachers_of(config):
        try:
            found.append((each.path, each.weight, locate(each.path, what="teacher")))
        except UserError as error:
            return [], str(error)
    return found, None

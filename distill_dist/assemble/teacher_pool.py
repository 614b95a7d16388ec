"""The teachers of a run: each model built and checked, and all joined to one teacher."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from distill_dist.assemble.models import TeacherShape, build_teacher, teacher_shape
from distill_dist.assemble.objective import build_objective
from distill_dist.assemble.pool_report import PoolReport
from distill_dist.assemble.saliency_of_run import why_no_saliency
from distill_dist.assemble.teacher_worker import check_teaches, computer_of
from distill_dist.config.pool import as_only_teacher, is_pool, naming_the_model, teachers_of
from distill_dist.config.schema import RunConfig
from distill_dist.data.manifest import Manifest
from distill_dist.errors import UserError
from distill_dist.models.encoder import EncoderParts
from distill_dist.objectives.join_signals import Joining
from distill_dist.teacher.identity import Identity
from distill_dist.teacher.local import Teacher
from distill_dist.teacher.pool import TeacherPool
from distill_dist.teacher.row_computer import RowComputer
from distill_dist.telemetry import Telemetry


def teacher_shapes(config: RunConfig) -> tuple[TeacherShape, ...]:
    """Of every model; from their configuration files alone."""
    shapes = []
    for number in range(len(teachers_of(config))):
        with naming_the_model(config, number):
            shapes.append(teacher_shape(as_only_teacher(config, number)))
    return tuple(shapes)


@dataclass(frozen=True)
class LocalModel:
    """A frozen model in this process."""

    parts: EncoderParts
    compute: RowComputer  # the same, behind rows
    identity: Identity


def build_teachers(config: RunConfig, manifest: Manifest, device: torch.device) -> tuple[LocalModel, ...]:
    """Every frozen model on ``device``. Raises UserError, also where one says nothing that could be learned."""
    found = []
    for number in range(len(teachers_of(config))):
        with naming_the_model(config, number):
            alone = as_only_teacher(config, number)
            parts = build_teacher(alone, manifest, device)
            compute = computer_of(alone, manifest, parts, device)
            found.append(LocalModel(parts, compute, check_teaches(compute, alone)))
    return tuple(found)


def check_pool_fits(config: RunConfig, student: EncoderParts, shapes: Sequence[TeacherShape]) -> None:
    """Raises UserError where ``student`` cannot be compared with every teacher, or they cannot be joined."""
    if not is_pool(config):
        return
    reason = why_no_saliency(config, shapes)
    if config.evaluate.saliency and reason is not None:
        raise UserError(f"evaluate.saliency=true, but {reason}: leave it away")
    first = build_objective(config, student, shapes[0])
    matches = bool(first.weights.keys() & {"patience", "gradient_cls"})
    for number, shape in enumerate(shapes):
        with naming_the_model(config, number):
            layers = build_objective(config, student, shape).teacher_layers
        if matches and (shape.hidden_size, layers) != (shapes[0].hidden_size, first.teacher_layers):
            raise UserError(
                f"teachers[{number}] is {shape.hidden_size} wide and matched in its layers {list(layers)}, "
                f"teachers[0] {shapes[0].hidden_size} and in {list(first.teacher_layers)}: [CLS] states and gradients "
                "of several teachers are compared with the student's where width and layers are the same. Take "
                "teachers of one width and depth, name objective.teacher_layers, or take a method without [CLS] terms "
                "(kd, or gkd with alignment.positions=embedding)"
            )


def joined(config: RunConfig, members: Sequence[Teacher]) -> Teacher:
    """One teacher of all ``members``; the member itself where it is the only one."""
    if len(members) == 1:
        return members[0]
    return TeacherPool(members, joining(config))


def joining(config: RunConfig) -> Joining:
    """How the run's teachers become one."""
    weights = tuple(each.weight for each in teachers_of(config))
    return Joining(config.teacher.combine, weights, config.objective.temperature)


def report_of(config: RunConfig, teacher: Teacher | None, telemetry: Telemetry) -> PoolReport | None:
    """What is said of several teachers; None with one."""
    if not isinstance(teacher, TeacherPool):
        return None
    return PoolReport(teacher, teachers_of(config), config.teacher.combine, telemetry)

"""The student under ZeRO, with the way in which its gradients of gradients are found, and the proof of that way."""

from __future__ import annotations

import logging
from typing import Any

import torch

from distill_dist.assemble.alignment import copied_for_probe, describe_alignment, run_probe
from distill_dist.assemble.loading import Loaded
from distill_dist.assemble.place import Place
from distill_dist.assemble.route import ChosenRoute, choose_route
from distill_dist.assemble.training_rows import first_step
from distill_dist.comm.students import StudentGroup
from distill_dist.config.deepspeed_json import zero_stage
from distill_dist.config.schema import RunConfig
from distill_dist.data.loader import StepLoader
from distill_dist.engine import Engine
from distill_dist.models.build import compile_layers
from distill_dist.models.encoder import encoder_parts
from distill_dist.student import StudentStep
from distill_dist.teacher.local import Teacher

_log = logging.getLogger(__name__)


def build_student(
    config: RunConfig,
    place: Place,
    loaded: Loaded,
    group: StudentGroup,
    teacher: Teacher | None,
    loader: StepLoader,
) -> tuple[Engine, StudentStep, dict[str, Any] | None]:
    """The student under ZeRO at the checkpoint's step, and what is said of its matched gradients, proved first.

    A collective of all students. Raises UserError where no route is right for it, or the probe finds it wrong.
    """
    plain = copied_for_probe(config, loaded, place.device)  # before it is sharded; gone when this returns
    engine, route = _shard(config, place, loaded, group)
    student = StudentStep(
        encoder_parts(engine.module),
        loaded.objective,
        route=route.route,
        maps=loaded.maps,
        autocast=torch.bfloat16 if config.train.precision == "bf16_autocast" else None,
    )
    alignment = None
    if loaded.objective.is_aligned:
        assert teacher is not None
        alignment = describe_alignment(config, route)
        if plain is not None:
            first = first_step(loader)
            alignment["probe"] = run_probe(config, route, engine, student, plain, first, teacher, group)
    if loaded.resumed is not None:
        engine.load_state_dict(loaded.resumed.tensors)
        loaded.resumed.tensors.clear()  # they lie in the checkpoint's file, which is to be removed some day
        _log.info("resumed from %s", loaded.resumed.folder)
    return engine, student, alignment


def _shard(
    config: RunConfig, place: Place, loaded: Loaded, group: StudentGroup
) -> tuple[Engine, ChosenRoute]:
    """The student under ZeRO, and how its gradients of gradients are found."""
    model = loaded.student.model.to(place.device)
    route = choose_route(
        config,
        zero_stage=zero_stage(loaded.deepspeed_json),
        model=model,
        device=place.device,
        least=lambda value: -group.agree(-value),
    )
    if config.student.compile:
        compile_layers(loaded.student.layers)
    engine = Engine(
        model,
        loaded.deepspeed_json,
        students=group.size,
        optimizer=config.train.optimizer,
        weight_decay=config.train.weight_decay,
        clip_norm=config.train.clip_norm,
        precision="bf16" if config.train.precision == "bf16" else "fp32",
        differentiates_twice=loaded.objective.is_aligned and route.route.name == "double_backward",
    )
    return engine, route

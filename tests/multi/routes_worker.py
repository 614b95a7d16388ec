"""What the ranks of test_routes.py do: every cell of the matrix at one ZeRO stage, and the probe. No pytest in here."""

from __future__ import annotations

import copy
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from distill_dist.assemble.route import choose_route
from distill_dist.comm.students import StudentGroup
from distill_dist.config.load import load_config
from distill_dist.config.schema import RunConfig
from distill_dist.engine import Engine
from distill_dist.errors import UserError
from distill_dist.models.build import FAST_KERNELS, load_classifier, set_attention, set_checkpointing
from distill_dist.models.encoder import encoder_parts
from distill_dist.probe import first_rows, probe
from distill_dist.records import Step, TeacherSignal
from distill_dist.student import Route, StudentStep
from distill_dist.teacher.local import Teacher
from multi.engine_worker import CPU, accumulate, make_objective, stream_of, students_and_teachers, zero_json
from multi.engine_world import RATE, Case
from multi.routes_world import STEPS, Cell

METHOD = "gkd_cls"


def matrix(stage: int, cells: list[dict[str, Any]], models: str, out: str) -> dict[str, Any]:
    """Every cell: refused with our message, or four SGD steps whose gradients and weights lie in a file."""

    def act(group: StudentGroup, teacher: Teacher) -> dict[str, Any]:
        Path(out).mkdir(parents=True, exist_ok=True)
        found = {}
        for values in cells:
            cell = Cell(**values)
            found[cell.name] = run_cell(cell, group, teacher, stage=stage, models=models, folder=out)
        return found

    return students_and_teachers(0, models, act)


def config_of(cell: Cell, folder: Path, stage: int) -> RunConfig:
    """The run's configuration, as a user would write it. Raises UserError for what the rules forbid."""
    # of this rank alone: the other may read while this one writes
    path = folder / f"zero{stage}-{os.getpid()}.json"
    path.write_text(json.dumps(zero_json(stage)))
    return load_config(
        None,
        [
            f"method={METHOD}", "data.source=synthetic_nli", "data.prepared=somewhere", f"run_dir={folder}/run",
            "teacher.path=teacher", "student.path=student", f"deepspeed_config={path}",
            f"alignment.route={cell.route}", f"student.attention={cell.attention}",
            f"student.checkpointing={str(cell.checkpointing).lower()}", f"train.precision={cell.precision}",
        ],
    )  # fmt: skip


def student_of(models: str, attention: str, *, checkpointing: bool) -> Any:
    """A fresh student, embeddings frozen, as a run builds it."""
    for switch in FAST_KERNELS:
        switch(True)  # an earlier cell may have switched them off
    model = load_classifier(f"{models}/student", attention="eager")
    set_attention(model, attention)
    set_checkpointing(model, on=checkpointing)
    model.bert.embeddings.requires_grad_(False)
    return model


def build(
    cell: Cell, group: StudentGroup, *, stage: int, models: str, folder: str
) -> tuple[Engine, StudentStep, Any]:
    """(engine, student, a plain copy for the probe). Raises UserError where the cell is forbidden."""
    config = config_of(cell, Path(folder), stage)
    model = student_of(models, cell.attention, checkpointing=cell.checkpointing)
    route = choose_route(config, zero_stage=stage, model=model, device=CPU).route
    plain = copy.deepcopy(model)
    set_checkpointing(plain, on=False)
    set_attention(plain, "eager")
    engine = Engine(
        model,
        zero_json(stage),
        students=group.size,
        optimizer="sgd",
        weight_decay=0.0,
        clip_norm=0.0,
        precision="bf16" if cell.precision == "bf16" else "fp32",
        differentiates_twice=route.name == "double_backward",
    )
    autocast = torch.bfloat16 if cell.precision == "bf16_autocast" else None
    student = StudentStep(
        encoder_parts(engine.module), make_objective(METHOD), route=route, autocast=autocast
    )
    return engine, student, plain.train()


def run_cell(
    cell: Cell, group: StudentGroup, teacher: Teacher, *, stage: int, models: str, folder: str
) -> dict[str, Any]:
    """One cell of the matrix."""
    try:
        engine, student, plain = build(cell, group, stage=stage, models=models, folder=folder)
    except UserError as error:
        return {"refused": str(error)}
    # DeepSpeed's bf16 masters start from rounded weights
    tensors = {f"start/{name}": weight for name, weight in engine.weights().items()}
    found: dict[str, Any] = {"losses": [], "micro_batches": []}
    case = Case(METHOD, cut=cell.cut, frozen=True)
    for step, signals in stream_of(case, student.objective, group, teacher):
        if step.number == STEPS:
            break
        if step.number == 0:
            found["probe"] = probed(engine, student, plain, step, signals, group)
        found["losses"].append(float(group.sum_(accumulate(engine, student, step, signals))))
        found["micro_batches"].append(len(step.batches))
        for name, gradient in engine.reduced_gradients().items():
            tensors[f"gradient/{step.number}/{name}"] = gradient.float()
        engine.step(RATE)
    for name, weight in engine.weights().items():
        tensors[f"weight/{name}"] = weight
    if group.rank == 0:
        save_file(tensors, f"{folder}/{cell.name}.safetensors")
    return found


def probed(
    engine: Engine,
    student: StudentStep,
    plain: Any,
    step: Step,
    signals: tuple[TeacherSignal, ...],
    group: StudentGroup,
) -> float:
    """The probe's error relative to the aligned part."""
    batch, signal = first_rows(step.batches[0]), first_rows(signals[0])
    copied = StudentStep(encoder_parts(plain), student.objective)
    return probe(engine, student, copied, batch, signal, group).aligned_error


def mutations(stage: int, models: str, out: str) -> dict[str, Any]:
    """What the probe says of each known silent failure at this stage; `inf` or an exception is caught as well."""

    def act(group: StudentGroup, teacher: Teacher) -> dict[str, Any]:
        Path(out).mkdir(parents=True, exist_ok=True)
        found: dict[str, Any] = {}
        for name in MUTATIONS:
            found[name] = _mutated(name, group, teacher, stage=stage, models=models, folder=out)
        return found

    return students_and_teachers(0, models, act)


MUTATIONS = ("none", "no rank factor", "no gather", "micro-batches forgotten", "wrapper's forward")


def _mutated(
    name: str, group: StudentGroup, teacher: Teacher, *, stage: int, models: str, folder: str
) -> dict[str, Any]:
    route = "central_difference" if name == "wrapper's forward" else "double_backward"
    cell = Cell(route, "eager", False, 1, "fp32")
    engine, student, plain = build(cell, group, stage=stage, models=models, folder=folder)
    if name == "no rank factor":
        engine._students = 1
    elif name == "no gather":
        engine._whole_in_backward = False
    elif name == "micro-batches forgotten":
        engine._is_cut = (
            False  # so that DeepSpeed does not hear of them; whole weights are not gathered either
        )
        engine._whole_in_backward = False
        student = replace(student, route=Route("central_difference", keeps_graph=False))
    elif name == "wrapper's forward":
        student = StudentStep(
            _through(engine, student), student.objective, route=Route("central_difference", keeps_graph=False)
        )
    case = Case(METHOD, cut="whole", frozen=True)
    errors = []
    try:
        for step, signals in stream_of(case, student.objective, group, teacher):
            if step.number == 2:
                break
            errors.append(probed(engine, student, plain, step, signals, group))
            accumulate(engine, student, step, signals)
            engine.step(RATE)
            plain.load_state_dict(engine.weights())
    except Exception as error:  # whatever DeepSpeed raises is a failure that is seen
        return {"raised": f"{type(error).__name__}: {error}"[:200], "errors": errors}
    return {"errors": errors}


def _through(engine: Engine, student: StudentStep) -> Any:
    """The student's parts with DeepSpeed's wrapper as the model that forwards run through."""
    parts = copy.copy(student.parts)
    object.__setattr__(parts, "model", engine._engine)
    return parts

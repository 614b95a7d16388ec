"""What the ranks of test_engine.py do: the product's own loader, teacher, objective and engine. No pytest in here."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from distill_dist.comm.environment import prepare_environment, read_environment
from distill_dist.comm.members import peers
from distill_dist.comm.rendezvous import connect_store
from distill_dist.comm.roles import assign_roles
from distill_dist.comm.rpc_world import RpcWorld
from distill_dist.comm.students import StudentGroup
from distill_dist.data.collate import collate
from distill_dist.data.loader import StepLoader
from distill_dist.engine import Engine
from distill_dist.models.build import load_classifier
from distill_dist.models.encoder import EncoderParts, encoder_parts
from distill_dist.objectives.objective import METHODS, Objective
from distill_dist.records import Batch, Step, TeacherSignal
from distill_dist.student import StudentStep
from distill_dist.teacher.client import RemoteTeacher
from distill_dist.teacher.host import TeacherHost
from distill_dist.teacher.local import LocalTeacher, Teacher
from distill_dist.teacher.remote_calls import open_host
from distill_dist.teacher.row_codec import WireTypes
from distill_dist.teacher.row_computer import RowComputer
from distill_dist.teacher.signal_cache import SignalCache
from distill_dist.teacher.wire import pack_request
from multi.engine_world import (
    CASES,
    CUTS,
    GLOBAL_BATCH,
    LABELS,
    RATE,
    STUDENT_LAYERS,
    TEACHER_LAYERS,
    Case,
    make_rows,
)

WAIT_S = 60.0
STAGES = (0, 1, 2, 3)
GRADIENT = {"gkd": 0.5, "gkd_cls": 0.1}
CPU = torch.device("cpu")
Act = Callable[[StudentGroup, Teacher], dict[str, Any]]


def students_and_teachers(teachers: int, models: str, act: Act) -> dict[str, Any]:
    """``act`` on every student, as a run would assemble it; the teacher answers until they are done."""
    launch = read_environment(os.environ)
    roles = assign_roles(
        world_size=launch.world_size, local_size=launch.world_size, teachers=teachers, placement="last"
    )
    store = connect_store(launch, timeout_s=WAIT_S)
    known = peers(store, launch.world_size)
    names = tuple(f"rank{rank}" for rank in range(launch.world_size))
    parts = encoder_parts(load_classifier(f"{models}/teacher", attention="eager").requires_grad_(False))

    def join_rpc() -> RpcWorld:
        return RpcWorld(
            store,
            name=names[launch.rank],
            students=tuple(names[rank] for rank in roles.students),
            hosts=tuple(names[rank] for rank in roles.teachers),
            address="127.0.0.1",
            timeout_s=WAIT_S,
        )

    if roles.is_teacher(launch.rank):
        return _teach(parts, len(roles.students), join_rpc)
    student = roles.students.index(launch.rank)
    prepare_environment(os.environ, launch, student_rank=student, students=len(roles.students))
    group = StudentGroup(
        store, rank=student, global_ranks=roles.students, peers=known, backend="gloo", timeout_s=WAIT_S
    )
    world = join_rpc() if teachers else None
    teacher: Teacher = LocalTeacher(parts, CPU)
    if world is not None:
        called = [names[rank] for rank in roles.teachers]
        teacher = RemoteTeacher(
            world,
            names=called,
            student=student,
            deadline_s=WAIT_S,
            patience_s=WAIT_S,
            lease_s=10 * WAIT_S,
        )
    found = act(group, teacher)
    teacher.release(timeout_s=WAIT_S)
    group.agree(0)
    if world is not None:
        world.leave()
    group.leave()
    return found


def _teach(parts: EncoderParts, students: int, join_rpc: Callable[[], RpcWorld]) -> dict[str, Any]:
    compute = RowComputer(parts, CPU, types=WireTypes(), fingerprint="f" * 64)
    host = TeacherHost(
        compute,
        SignalCache(1 << 20, None, context=bytes(32)),
        students=students,
        lease_s=10 * WAIT_S,
        batch_tokens=4096,
        queue_tokens=1 << 20,
        description=compute.introduce(
            pack_request(collate(make_rows().read(np.arange(4)), pad_token_id=0), labels=False)
        ),
    )
    open_host(host)
    world = join_rpc()
    assert host.serve(should_stop=lambda: False)
    world.leave()
    return {"answered": host.answered}


def make_engine(
    models: str,
    group: StudentGroup,
    *,
    stage: int,
    case: Case,
    optimizer: str = "sgd",
    precision: str = "fp32",
) -> Engine:
    """A fresh student under ZeRO ``stage``; at 3 no weight is small enough to stay whole."""
    model = load_classifier(f"{models}/student", attention="eager")
    if case.frozen:
        model.bert.embeddings.requires_grad_(False)
    return Engine(
        model,
        zero_json(stage),
        students=group.size,
        optimizer=optimizer,
        weight_decay=case.weight_decay,
        clip_norm=case.clip_norm,
        precision=precision,
        differentiates_twice=case.method in GRADIENT,
    )


def zero_json(stage: int) -> dict[str, Any]:
    """DeepSpeed's file for ``stage``."""
    small = {"stage3_param_persistence_threshold": 0} if stage == 3 else {}
    return {"zero_optimization": {"stage": stage, **small}}


def make_objective(method: str) -> Objective:
    """The method with the weights that its configuration would derive."""
    matches = method in ("pkd", "gkd_cls")
    return Objective(
        terms=METHODS[method],
        gradient=GRADIENT.get(method, 0.0),
        kd_per_class=method in GRADIENT,
        teacher_layers=TEACHER_LAYERS if matches else (),
        student_layers=STUDENT_LAYERS if matches else (),
    )


def stream_of(
    case: Case, objective: Objective, group: StudentGroup, teacher: Teacher, *, start: int = 0
) -> Iterator[tuple[Step, tuple[TeacherSignal, ...]]]:
    """Steps with their signals, from step ``start``."""
    pad_to, micro_tokens = CUTS[case.cut]
    loader = StepLoader(
        split=make_rows(),
        rows_at=lambda epoch, positions: positions,
        rank=group.rank,
        size=group.size,
        seed=0,
        batch_size=GLOBAL_BATCH,
        window=1,
        micro_tokens=micro_tokens,
        pad_token_id=0,
        pad_to=pad_to,
    )
    assert objective.signal_spec is not None

    def batches_of(step: Step) -> tuple[Batch, ...]:
        return step.batches

    return teacher.signals(
        loader.steps(start_step=start, epochs=1), batches_of, objective.signal_spec, ahead=2
    )


def accumulate(
    engine: Engine, student: StudentStep, step: Step, signals: tuple[TeacherSignal, ...]
) -> Tensor:
    """Backward of all micro-batches of one step, as the trainer does it; this rank's share of the loss."""
    engine.module.train()
    total = torch.zeros((), dtype=torch.float64)
    for place, (batch, signal) in enumerate(zip(step.batches, signals, strict=True)):
        share = student.loss_terms(batch, signal, step.counts).total(step.counts)
        engine.backward(share, last=place == len(step.batches) - 1)
        total += share.detach().double()
    return total


def compare(teachers: int, stage: int, models: str, out: str) -> dict[str, Any]:
    """All cases, bf16 and the state's round trips at one ZeRO stage; tensors go to ``out`` from student 0."""

    def act(group: StudentGroup, teacher: Teacher) -> dict[str, Any]:
        found: dict[str, Any] = {"stage": stage, "students": group.size}
        found["cases"] = {
            case.name: run_case(case, group, teacher, stage=stage, models=models, folder=out)
            for case in CASES
        }
        found["remote equals local"] = same_signals(group, teacher, models)
        bf16 = Case("gkd_cls", frozen=True)
        found["bf16"] = run_case(
            bf16, group, teacher, stage=stage, models=models, folder=f"{out}/bf16", precision="bf16"
        )
        for precision in ("fp32", "bf16"):
            found[f"state {precision}"] = round_trip(
                group, teacher, stage=stage, models=models, folder=out, precision=precision
            )
        return found

    return students_and_teachers(teachers, models, act)


def run_case(
    case: Case,
    group: StudentGroup,
    teacher: Teacher,
    *,
    stage: int,
    models: str,
    folder: str,
    precision: str = "fp32",
) -> dict[str, Any]:
    """Five SGD steps: losses, norms, numbers of micro-batches; gradients and weights in a file."""
    engine = make_engine(models, group, stage=stage, case=case, precision=precision)
    assert engine.zero_stage == stage
    objective = make_objective(case.method)
    tensors: dict[str, Tensor] = {}
    found: dict[str, Any] = {"losses": [], "norms": [], "micro_batches": [], "fillers": 0}
    for step, signals in stream_of(case, objective, group, teacher):
        share = accumulate(engine, StudentStep(encoder_parts(engine.module), objective), step, signals)
        for name, gradient in engine.reduced_gradients().items():
            tensors[f"gradient/{step.number}/{name}"] = gradient.float()
        found["losses"].append(float(group.sum_(share)))
        found["norms"].append(engine.step(RATE, measure_norm=True))
        found["micro_batches"].append(len(step.batches))
        found["fillers"] += sum(not bool(batch.is_real_B.any()) for batch in step.batches)
    for name, weight in engine.weights().items():
        tensors[f"weight/{name}"] = weight
    if group.rank == 0:
        Path(folder).mkdir(parents=True, exist_ok=True)
        save_file(tensors, f"{folder}/{case.name}.safetensors")
    return found


def same_signals(group: StudentGroup, teacher: Teacher, models: str) -> bool:
    """Whether the teacher behind RPC and one in this process give the same bits."""
    objective = make_objective("gkd_cls")
    here = LocalTeacher(encoder_parts(load_classifier(f"{models}/teacher", attention="eager")), CPU)
    case = Case("gkd_cls")
    pairs = zip(
        stream_of(case, objective, group, teacher), stream_of(case, objective, group, here), strict=True
    )
    equal = []
    for (_, theirs), (_, ours) in pairs:
        for remote, local in zip(theirs, ours, strict=True):
            for field in fields(TeacherSignal):
                a, b = getattr(remote, field.name), getattr(local, field.name)
                if (a is None) != (b is None) or (a is not None and not torch.equal(a, b)):
                    return False
                equal.append(a is not None)
    return sum(equal) > 0


def round_trip(
    group: StudentGroup, teacher: Teacher, *, stage: int, models: str, folder: str, precision: str
) -> dict[str, bool]:
    """Three AdamW steps, save, two more; then load into fresh engines of every stage and go on."""
    case = Case("kd", clip_norm=1.0, weight_decay=0.01)
    objective = make_objective(case.method)

    def engine_at(at_stage: int) -> Engine:
        return make_engine(models, group, stage=at_stage, case=case, optimizer="adamw", precision=precision)

    def go_on(engine: Engine, start: int, end: int) -> dict[str, Tensor]:
        for step, signals in stream_of(case, objective, group, teacher, start=start):
            if step.number == end:
                break
            accumulate(engine, StudentStep(encoder_parts(engine.module), objective), step, signals)
            engine.step(1e-3)
        return engine.state_dict()

    limit = 0.01 if precision == "fp32" else 0.1
    first = engine_at(stage)
    saved = go_on(first, 0, 3)
    finished = go_on(first, 3, 5)
    if group.rank == 0:
        Path(folder).mkdir(parents=True, exist_ok=True)
        save_file(saved, f"{folder}/state-{precision}.safetensors")
    group.agree(0)
    read = load_file(f"{folder}/state-{precision}.safetensors")
    found = {"it moved": not _equal(saved, finished), "step is 3": float(saved["step"]) == 3.0}
    for other in STAGES:
        engine = engine_at(other)
        engine.load_state_dict(read)
        found[f"loaded at {other}"] = _equal(engine.state_dict(), saved)
        went_on = go_on(engine, 3, 5)
        found[f"goes on at {other}"] = (
            _equal(went_on, finished) if other == stage else _near(went_on, finished, saved, limit)
        )
    return found


def load_elsewhere(models: str, states: list[str]) -> dict[str, Any]:
    """States that two students wrote, loaded by one, at every stage and precision."""

    def act(group: StudentGroup, teacher: Teacher) -> dict[str, Any]:
        found = {}
        for path in states:
            precision = "bf16" if "bf16" in path else "fp32"
            saved = load_file(path)
            for stage in STAGES:
                engine = make_engine(
                    models, group, stage=stage, case=Case("kd"), optimizer="adamw", precision=precision
                )
                engine.load_state_dict(saved)
                found[f"{path} at {stage}"] = _equal(engine.state_dict(), saved)
        return found

    return students_and_teachers(0, models, act)


def _equal(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def _near(left: dict[str, Tensor], right: dict[str, Tensor], start: dict[str, Tensor], limit: float) -> bool:
    """Whether both moved from ``start`` in the same way, but for the last bits, which differ between stages.

    AdamW makes them larger where gradients are small, hence a generous ``limit`` of the relative difference; moments
    that were lost or mixed up change a move by its own size.
    """
    names = [name for name in start if name.startswith("weights/")]
    a, b, c = (torch.cat([side[name].flatten() for name in names]) for side in (left, right, start))
    return float((a - b).norm() / (b - c).norm()) < limit


assert len(LABELS) > 2, "with two classes the paper's signal and ours could agree by accident"

"""A launched process that trains: every object of the loop, put together."""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distill_dist import checkpoint
from distill_dist.assemble.models import (
    build_objective,
    build_student,
    build_teacher,
    check_prepared,
    teacher_shape,
)
from distill_dist.assemble.outcome import Outcome
from distill_dist.assemble.place import Place
from distill_dist.assemble.resume import check_identity, run_identity
from distill_dist.comm.environment import prepare_environment
from distill_dist.comm.rendezvous import peers
from distill_dist.comm.rpc_world import RpcWorld
from distill_dist.comm.students import StudentGroup
from distill_dist.config.deepspeed_json import load_deepspeed_json
from distill_dist.config.load import dump_config
from distill_dist.config.schema import RunConfig
from distill_dist.curriculum.order import RandomOrder
from distill_dist.data.loader import StepLoader, evaluation_batches
from distill_dist.data.manifest import Manifest, load_manifest, manifest_hash
from distill_dist.data.shards import PreparedSplit, open_split
from distill_dist.engine import Engine
from distill_dist.errors import UserError
from distill_dist.evaluation.split import SplitScorer
from distill_dist.models.encoder import EncoderParts, encoder_parts
from distill_dist.objectives.objective import Objective
from distill_dist.records import Batch, Step
from distill_dist.run_folder import RunFolder
from distill_dist.schedule import learning_rate
from distill_dist.stop_signal import StopSignal
from distill_dist.student import StudentStep
from distill_dist.teacher.client import LocalTeacher, RemoteTeacher, Teacher
from distill_dist.telemetry import Telemetry
from distill_dist.trace import Trace
from distill_dist.trainer import StepWithSignals, Trainer

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Loaded:
    """What a student holds before it meets the others."""

    manifest: Manifest
    train: PreparedSplit
    scored: dict[str, PreparedSplit]
    student: EncoderParts
    local_teacher: EncoderParts | None
    objective: Objective
    identity: dict[str, Any]
    resumed: checkpoint.Checkpoint | None
    deepspeed_json: dict[str, Any]


def train_student(
    config: RunConfig, place: Place, stop: StopSignal, folder: RunFolder
) -> dict[str, Any] | None:
    """Train to the end of the run; the summary on student 0. Raises UserError, Interrupted."""
    with place.loading(timeout_s=config.cluster.collective_s):
        loaded = _load(config, place, folder)
    group = _join(config, place)
    teacher, world = _meet_teacher(config, place, loaded)
    if place.student == 0:
        folder.describe(config_yaml=dump_config(config), deepspeed_json=loaded.deepspeed_json)
    with folder.verdict(writes=place.student == 0):
        summary = _train(config, place, stop, folder, loaded, group, teacher)
    if teacher is not None:
        teacher.release()
    group.agree(0)  # nobody leaves before all are done: launchers kill the siblings of a rank that exits
    if world is not None:
        world.leave()
    group.leave()
    return summary if place.student == 0 else None


def _load(config: RunConfig, place: Place, folder: RunFolder) -> _Loaded:
    prepared = Path(config.data.prepared)
    manifest = load_manifest(prepared)
    check_prepared(config, manifest)
    student = build_student(config, manifest)
    shape, local_teacher = None, None
    if config.teacher.path:
        shape = teacher_shape(config)
        if not place.roles.teachers:
            local_teacher = build_teacher(config, manifest, place.device)
    identity = run_identity(config, manifest_hash(manifest))
    return _Loaded(
        manifest=manifest,
        train=open_split(prepared, "train"),
        scored={name: open_split(prepared, name) for name in manifest.splits if name != "train"},
        student=student,
        local_teacher=local_teacher,
        objective=build_objective(config, student, shape),
        identity=identity,
        resumed=_find_checkpoint(config, folder, identity),
        deepspeed_json=load_deepspeed_json(Path(config.deepspeed_config)),
    )


def _find_checkpoint(
    config: RunConfig, folder: RunFolder, identity: dict[str, Any]
) -> checkpoint.Checkpoint | None:
    if config.train.resume == "never" and checkpoint.complete_folders(folder.checkpoints):
        raise UserError(
            f"run_dir={folder.path} has checkpoints and train.resume is 'never': choose another run_dir, or "
            "train.resume=auto to go on"
        )
    found = checkpoint.newest(folder.checkpoints)
    if found is not None:
        check_identity(found.progress["identity"], identity, checkpoint=str(found.folder))
    return found


def _join(config: RunConfig, place: Place) -> StudentGroup:
    known = peers(place.store, place.roles.world_size)
    prepare_environment(
        os.environ, place.launch, student_rank=place.student, students=len(place.roles.students)
    )
    return StudentGroup(
        place.store,
        rank=place.student,
        global_ranks=place.roles.students,
        peers=known,
        backend="gloo" if place.device.type == "cpu" else "nccl",
        timeout_s=config.cluster.collective_s,
    )


def _meet_teacher(config: RunConfig, place: Place, loaded: _Loaded) -> tuple[Teacher | None, RpcWorld | None]:
    if loaded.local_teacher is not None:
        return LocalTeacher(loaded.local_teacher, place.device), None
    if not place.roles.teachers:
        return None, None
    world = RpcWorld(
        place.store,
        rank=place.rank,
        names=place.rpc_names,
        address=place.launch.master_address,
        timeout_s=config.cluster.rendezvous_s,
    )
    teacher = RemoteTeacher(
        world,
        place.teacher_names,
        student=place.student,
        deadline_s=config.teacher.deadline_s,
        lease_s=config.teacher.lease_s,
    )
    return teacher, world


def _train(
    config: RunConfig,
    place: Place,
    stop: StopSignal,
    folder: RunFolder,
    loaded: _Loaded,
    group: StudentGroup,
    teacher: Teacher | None,
) -> dict[str, Any]:
    train = config.train
    engine = Engine(
        loaded.student.model.to(place.device),
        loaded.deepspeed_json,
        students=group.size,
        optimizer=train.optimizer,
        weight_decay=train.weight_decay,
        clip_norm=train.clip_norm,
        precision=train.precision,
    )
    loader = StepLoader(
        split=loaded.train,
        rows_at=RandomOrder(loaded.train.num_rows, config.seed).rows_at,
        rank=group.rank,
        size=group.size,
        seed=config.seed,
        batch_size=config.batch.size,
        window=config.batch.length_window,
        micro_tokens=config.batch.micro_tokens,
        pad_token_id=loaded.manifest.pad_token_id,
        pad_to=config.batch.pad_to,
    )
    total_steps = train.epochs * loader.steps_per_epoch
    last_step = min(total_steps, train.max_steps or total_steps)
    start = 0
    if loaded.resumed is not None:
        engine.load_state_dict(loaded.resumed.tensors)
        start = loaded.resumed.progress["step"]
        _log.info("resumed from %s", loaded.resumed.folder)
    telemetry = Telemetry(
        folder.tensorboard,
        terms=tuple(loaded.objective.weights),
        rank=group.rank,
        students=group.size,
        sum_=group.sum_,
        device=place.device,
        total_steps=last_step,
        start_step=start,
        progress=True,
    )
    outcome = Outcome(
        config=config,
        engine=engine,
        student=LocalTeacher(encoder_parts(engine.module), place.device),
        teacher=teacher,
        scorers={name: _scorer(config, place, loaded, group, split) for name, split in loaded.scored.items()},
        group=group,
        telemetry=telemetry,
        folder=folder,
        tokenizer=Path(config.data.prepared) / "tokenizer",
        identity=loaded.identity,
        best=None if loaded.resumed is None else loaded.resumed.progress["best"],
    )
    trace = Trace(folder.path / f"trace-{group.rank:05d}.jsonl", first_step=start) if train.trace else None
    trainer = Trainer(
        engine=engine,
        student=StudentStep(encoder_parts(engine.module), loaded.objective),
        group=group,
        telemetry=telemetry,
        device=place.device,
        learning_rate=functools.partial(
            learning_rate, total_steps=total_steps, peak=train.learning_rate, warmup_share=train.warmup_share
        ),
        should_stop=stop.asked,
        waited_s=lambda: 0.0 if teacher is None else teacher.waited_s,
        save=outcome.save,
        end_epoch=outcome.end_epoch,
        committed=trace,
        seed=config.seed,
        steps_per_epoch=loader.steps_per_epoch,
        last_step=last_step,
        log_every=train.log_every,
        checkpoint_every=train.checkpoint_every,
    )
    steps = loader.steps(start_step=start, epochs=train.epochs, max_steps=train.max_steps)
    try:
        trainer.run(_with_signals(steps, teacher, loaded.objective, config.teacher.prefetch), start=start)
        return outcome.summary(last_step)
    finally:
        telemetry.close()


def _with_signals(
    steps: Iterator[Step], teacher: Teacher | None, objective: Objective, prefetch: int
) -> Iterator[StepWithSignals]:
    spec = objective.signal_spec
    if spec is None:
        return ((step, (None,) * len(step.batches)) for step in steps)
    assert teacher is not None
    return teacher.signals(steps, _batches_of, spec, ahead=prefetch)


def _batches_of(step: Step) -> tuple[Batch, ...]:
    return step.batches


def _scorer(
    config: RunConfig, place: Place, loaded: _Loaded, group: StudentGroup, split: PreparedSplit
) -> SplitScorer:
    batches = evaluation_batches(
        split,
        rank=group.rank,
        size=group.size,
        micro_tokens=config.batch.micro_tokens,
        pad_token_id=loaded.manifest.pad_token_id,
    )
    return SplitScorer(
        labels_N=split.labels,
        batches=tuple(batches),
        num_classes=len(loaded.manifest.labels),
        with_f1=loaded.manifest.metric == "f1",
        sum_=group.sum_,
        device=place.device,
        ahead=config.teacher.prefetch,
    )

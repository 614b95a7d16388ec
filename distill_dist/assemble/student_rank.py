"""A launched process that trains: every object of the loop, put together."""

from __future__ import annotations

import functools
import logging
import os
from typing import Any

import torch
import transformers

from distill_dist import checkpoint
from distill_dist.assemble.agreement import agree_on_start
from distill_dist.assemble.alignment import copied_for_probe, describe_alignment, run_probe
from distill_dist.assemble.curriculum import Curriculum
from distill_dist.assemble.loading import Loaded, load
from distill_dist.assemble.meet_teacher import RELEASE_S, Met, meet_teacher
from distill_dist.assemble.outcome import Outcome
from distill_dist.assemble.place import Place
from distill_dist.assemble.route import ChosenRoute, choose_route
from distill_dist.assemble.same_teachers import same_teachers
from distill_dist.assemble.saver import Saver
from distill_dist.assemble.served_scores import ServedScores
from distill_dist.assemble.service_watch import ServiceWatch
from distill_dist.assemble.teacher_pool import report_of
from distill_dist.assemble.training_rows import (
    build_curriculum,
    build_epochs,
    first_step,
    plain_loader,
    served_scores,
)
from distill_dist.assemble.wire_report import Costs
from distill_dist.comm.environment import prepare_environment
from distill_dist.comm.members import peers
from distill_dist.comm.silence import clone_store
from distill_dist.comm.stop_word import told_to_stop
from distill_dist.comm.students import StudentGroup
from distill_dist.config.deepspeed_json import zero_stage
from distill_dist.config.load import dump_config
from distill_dist.config.pool import is_pool
from distill_dist.config.schema import RunConfig
from distill_dist.data.loader import StepLoader
from distill_dist.engine import Engine
from distill_dist.errors import Interrupted, UserError
from distill_dist.evaluation.split import LOGITS, SplitScorer
from distill_dist.models.build import compile_layers
from distill_dist.models.encoder import encoder_parts
from distill_dist.objectives.conflict import conflict_tags
from distill_dist.run_folder import RunFolder
from distill_dist.schedule import learning_rate
from distill_dist.stop_signal import StopSignal
from distill_dist.student import StudentStep
from distill_dist.teacher.identity import Identity
from distill_dist.teacher.local import LocalTeacher, Teacher
from distill_dist.telemetry import Telemetry
from distill_dist.trace import Trace
from distill_dist.trainer import Trainer

_log = logging.getLogger(__name__)


def train_student(
    config: RunConfig, place: Place, stop: StopSignal, folder: RunFolder
) -> dict[str, Any] | None:
    """Train to the end of the run; the summary on student 0. Raises UserError, Interrupted."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        with place.loading(timeout_s=config.cluster.collective_s, stopped=stop.why):
            loaded = load(config, place, folder)
    except (UserError, Interrupted) as error:
        if place.student == 0:
            folder.refuse(error)
        raise
    if place.student == 0:
        told = clone_store(place.store)
        stop.listen(lambda: told_to_stop(told))
    met, early = Met(), True
    try:
        with folder.verdict(writes=place.student == 0):
            group = _join(config, place)
            with group.naming_the_lost():
                met = meet_teacher(config, place, loaded, stop)
                summary = _train(config, place, stop, folder, loaded, group, met)
                # nobody leaves before all are done: launchers kill the siblings of a rank that exits
                group.agree(0)
        early = False
    finally:
        met.part(place, early=early)
    group.leave()
    return summary if place.student == 0 else None


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


def _train(
    config: RunConfig,
    place: Place,
    stop: StopSignal,
    folder: RunFolder,
    loaded: Loaded,
    group: StudentGroup,
    met: Met,
) -> dict[str, Any]:
    train, teacher = config.train, met.teacher
    if place.student == 0:
        folder.describe(config_yaml=dump_config(config), deepspeed_json=loaded.deepspeed_json)
    start = _start(loaded)
    agree_on_start(group, start)
    taught_by = same_teachers(config, loaded.resumed, met.identities, group)
    plain = plain_loader(config, loaded, group)
    engine, student, alignment = _student(config, place, loaded, group, teacher, plain)
    itself = LocalTeacher(encoder_parts(engine.module), place.device, is_student=True)
    served = served_scores(config, loaded, group, folder)
    curriculum = build_curriculum(
        config, place, loaded, group, folder, engine, stop,
        student=itself, teacher=teacher, taught_by=taught_by, loader=plain, served=served,
    )  # fmt: skip
    total_steps = curriculum.total_steps
    last_step = min(total_steps, train.max_steps or total_steps)
    _log.info(
        "%s: %d student(s) at ZeRO %d, %d teacher(s), steps %d to %d of %d rows out of %d, on %s",
        config.method, group.size, engine.zero_stage, config.cluster.teachers, start, last_step, config.batch.size,
        loaded.train.num_rows, place.device,
    )  # fmt: skip
    telemetry = _telemetry(config, place, folder, loaded, group, start=start, last_step=last_step)
    watch = ServiceWatch(teacher, telemetry, group.size) if teacher is not None and group.rank == 0 else None
    outcome = _outcome(
        config, place, folder, loaded, group, teacher, taught_by, engine, itself, telemetry, alignment, curriculum,
        served, watch,
    )  # fmt: skip
    epochs = build_epochs(config, loaded, plain, curriculum, teacher, telemetry, last_step=last_step)
    trainer = Trainer(
        engine=engine,
        student=student,
        group=group,
        telemetry=telemetry,
        device=place.device,
        learning_rate=functools.partial(
            learning_rate, total_steps=total_steps, peak=train.learning_rate, warmup_share=train.warmup_share
        ),
        why_stop=stop.why,
        waited_s=lambda: 0.0 if teacher is None else teacher.waited_s,
        open_epoch=epochs.open,
        save=outcome.save,
        save_failed=outcome.saver.failed,
        settle=outcome.saver.settle,
        end_epoch=outcome.end_epoch,
        spoke=(lambda step: None) if watch is None else watch.ask,
        committed=(*_trace(config, folder, group, start), *((served,) if served else ())),
        seed=config.seed,
        steps_per_epoch=curriculum.steps_per_epoch,
        last_step=last_step,
        log_every=train.log_every,
        checkpoint_every=train.checkpoint_every,
    )
    try:
        outcome.hear_teacher()
        trainer.run(start=start)
        if config.curriculum.final_snapshot and last_step % curriculum.steps_per_epoch == 0:
            curriculum.finish(last_step)
        return outcome.summary(last_step)
    finally:
        if watch is not None:
            watch.close(RELEASE_S)
        outcome.saver.close()
        telemetry.close()
        epochs.close()
        if served is not None:
            served.close()


def _start(loaded: Loaded) -> int:
    return 0 if loaded.resumed is None else int(loaded.resumed.progress["step"])


def _telemetry(
    config: RunConfig,
    place: Place,
    folder: RunFolder,
    loaded: Loaded,
    group: StudentGroup,
    *,
    start: int,
    last_step: int,
) -> Telemetry:
    return Telemetry(
        folder.tensorboard,
        terms=tuple(loaded.objective.weights),
        rank=group.rank,
        students=group.size,
        sum_=group.sum_,
        device=place.device,
        total_steps=last_step,
        start_step=start,
        progress=True,
        measures=(*conflict_tags(loaded.objective.signal_spec), *loaded.objective.teacher_tags)
        if is_pool(config)
        else (),
    )


def _student(
    config: RunConfig,
    place: Place,
    loaded: Loaded,
    group: StudentGroup,
    teacher: Teacher | None,
    loader: StepLoader,
) -> tuple[Engine, StudentStep, dict[str, Any] | None]:
    """The student under ZeRO at the checkpoint's step, and what is said of its matched gradients, proved first."""
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


def _outcome(
    config: RunConfig,
    place: Place,
    folder: RunFolder,
    loaded: Loaded,
    group: StudentGroup,
    teacher: Teacher | None,
    taught_by: tuple[Identity, ...],
    engine: Engine,
    itself: LocalTeacher,
    telemetry: Telemetry,
    alignment: dict[str, Any] | None,
    curriculum: Curriculum,
    served: ServedScores | None,
    watch: ServiceWatch | None,
) -> Outcome:
    def curriculum_state() -> dict[str, Any]:
        return {"snapshot": curriculum.state_dict(), **({"served": served.sync()} if served else {})}

    return Outcome(
        config=config,
        engine=engine,
        student=itself,
        teacher=teacher,
        taught_by=taught_by,
        scorers=_scorers(config, place, loaded, group),
        group=group,
        telemetry=telemetry,
        folder=folder,
        tokenizer=loaded.tokenizer,
        identity=loaded.identity,
        alignment=alignment,
        best=loaded.best,
        saver=Saver(
            root=folder.checkpoints,
            group=group,
            telemetry=telemetry,
            keep=checkpoint.Keep(config.train.keep_last, config.train.keep_best),
            in_background=config.train.background_save,
            limit_s=config.cluster.collective_s,
            gather=engine.state_dict,
            saved_step=_start(loaded),
        ),
        curriculum=curriculum_state,
        order=curriculum.describe,
        no_saliency=loaded.no_saliency,
        pool=report_of(config, teacher, telemetry),
        watch=watch,
        wire=_wire(loaded, teacher),
    )


def _wire(loaded: Loaded, teacher: Teacher | None) -> tuple[Costs, ...]:
    """Of the training rows; where only loyalty is asked for, of their logits."""
    if teacher is None:
        return ()
    return teacher.wire(loaded.objective.signal_spec or LOGITS, float(loaded.train.teacher_lengths.mean()))


def _trace(config: RunConfig, folder: RunFolder, group: StudentGroup, start: int) -> tuple[Trace, ...]:
    if not config.train.trace:
        return ()
    return (Trace(folder.path / f"trace-{group.rank:05d}.jsonl", first_step=start),)


def _scorers(config: RunConfig, place: Place, loaded: Loaded, group: StudentGroup) -> dict[str, SplitScorer]:
    return {
        name: SplitScorer(
            labels_N=split.labels,
            batches=batches,
            num_classes=len(loaded.manifest.labels),
            metric=loaded.manifest.metric,
            sum_=group.sum_,
            device=place.device,
            ahead=config.teacher.prefetch,
        )
        for name, (split, batches) in loaded.scored.items()
    }

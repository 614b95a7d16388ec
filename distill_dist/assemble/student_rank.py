"""A launched process that trains: every object of the loop, put together."""

from __future__ import annotations

import functools
import logging
import os
from typing import Any

from distill_dist.assemble.agreement import agree_on_start
from distill_dist.assemble.build_outcome import build_outcome
from distill_dist.assemble.build_student import build_student
from distill_dist.assemble.hyperparameters import hyperparameters
from distill_dist.assemble.loading import Loaded, load, start_step
from distill_dist.assemble.meet_teacher import RELEASE_S, Met, meet_teacher
from distill_dist.assemble.place import Place
from distill_dist.assemble.same_teachers import same_teachers
from distill_dist.assemble.service_watch import ServiceWatch
from distill_dist.assemble.training_rows import (
    build_curriculum,
    build_epochs,
    plain_loader,
    served_scores,
)
from distill_dist.comm.environment import prepare_environment
from distill_dist.comm.members import peers
from distill_dist.comm.silence import clone_store
from distill_dist.comm.stop_word import told_to_stop
from distill_dist.comm.students import StudentGroup
from distill_dist.config.load import dump_config
from distill_dist.config.pool import is_pool
from distill_dist.config.schema import RunConfig
from distill_dist.errors import Interrupted, UserError
from distill_dist.models.build import quiet_loading
from distill_dist.models.encoder import encoder_parts
from distill_dist.objectives.conflict import conflict_tags
from distill_dist.run_folder import RunFolder
from distill_dist.schedule import learning_rate
from distill_dist.stop_signal import StopSignal
from distill_dist.teacher.local import LocalTeacher
from distill_dist.telemetry import Telemetry
from distill_dist.trace import Trace
from distill_dist.trainer import Trainer

_log = logging.getLogger(__name__)


def train_student(
    config: RunConfig, place: Place, stop: StopSignal, folder: RunFolder
) -> dict[str, Any] | None:
    """Train to the end of the run; the summary on student 0. Raises UserError, Interrupted."""
    quiet_loading()
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
    start = start_step(loaded)
    agree_on_start(group, start)
    taught_by = same_teachers(config, loaded.resumed, met.identities, group)
    plain = plain_loader(config, loaded, group)
    engine, student, alignment = build_student(config, place, loaded, group, teacher, plain)
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
    outcome = build_outcome(
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
        measures=(*conflict_tags(loaded.objective.signal_spec), *loaded.objective.teacher_tags)
        if is_pool(config)
        else (),
    )
    telemetry.hyperparameters(hyperparameters(config))
    return telemetry


def _trace(config: RunConfig, folder: RunFolder, group: StudentGroup, start: int) -> tuple[Trace, ...]:
    if not config.train.trace:
        return ()
    return (Trace(folder.path / f"trace-{group.rank:05d}.jsonl", first_step=start),)

"""The run's outcome, put together: scorers of every split, what saves, what reports on the teachers."""

from __future__ import annotations

import functools
from typing import Any

from distill_dist import checkpoint
from distill_dist.assemble.curriculum import Curriculum
from distill_dist.assemble.loading import Loaded, start_step
from distill_dist.assemble.outcome import Outcome
from distill_dist.assemble.place import Place
from distill_dist.assemble.saver import Saver
from distill_dist.assemble.served_scores import ServedScores
from distill_dist.assemble.service_watch import ServiceWatch
from distill_dist.assemble.teacher_pool import report_of
from distill_dist.assemble.wire_report import Costs
from distill_dist.comm.students import StudentGroup
from distill_dist.config.schema import RunConfig
from distill_dist.engine import Engine
from distill_dist.evaluation.split import LOGITS, SplitScorer
from distill_dist.models.tokenizer import save_tokenizer
from distill_dist.objectives.objective import Objective
from distill_dist.run_folder import RunFolder
from distill_dist.teacher.identity import Identity
from distill_dist.teacher.local import LocalTeacher, Teacher
from distill_dist.telemetry import Telemetry


def build_outcome(
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
    """What writes checkpoints, scores every epoch and sums up, out of the run's objects."""

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
        save_tokenizer=functools.partial(
            save_tokenizer,
            loaded.tokenizer,
            max_length=config.data.max_length,
            takes_token_types=loaded.student.takes_token_types,
        ),
        identity=loaded.identity,
        alignment=alignment,
        matched_layers=_matched_layers(loaded.objective),
        best=loaded.best,
        saver=Saver(
            root=folder.checkpoints,
            group=group,
            telemetry=telemetry,
            keep=checkpoint.Keep(config.train.keep_last, config.train.keep_best),
            in_background=config.train.background_save,
            limit_s=config.cluster.collective_s,
            gather=engine.state_dict,
            saved_step=start_step(loaded),
        ),
        curriculum=curriculum_state,
        order=curriculum.describe,
        no_saliency=loaded.no_saliency,
        pool=report_of(config, teacher, telemetry),
        watch=watch,
        wire=_wire(loaded, teacher),
    )


def _matched_layers(objective: Objective) -> dict[str, list[int]] | None:
    if not objective.student_layers:
        return None
    return {"teacher": list(objective.teacher_layers), "student": list(objective.student_layers)}


def _wire(loaded: Loaded, teacher: Teacher | None) -> tuple[Costs, ...]:
    """Of the training rows; where only loyalty is asked for, of their logits."""
    if teacher is None:
        return ()
    return teacher.wire(loaded.objective.signal_spec or LOGITS, float(loaded.train.teacher_lengths.mean()))


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

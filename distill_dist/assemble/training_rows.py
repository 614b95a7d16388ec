"""Which rows a student trains on, step by step: the loader and the curriculum of a run."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from distill_dist.assemble.curriculum import Curriculum
from distill_dist.assemble.curriculum_report import CurriculumReport
from distill_dist.assemble.epochs import Epochs
from distill_dist.assemble.loading import Loaded
from distill_dist.assemble.place import Place
from distill_dist.assemble.resume import run_digest
from distill_dist.assemble.scores_of_run import ScoresOfRun
from distill_dist.assemble.served_scores import ServedScores
from distill_dist.assemble.snapshots import SnapshotMaker
from distill_dist.comm.students import StudentGroup
from distill_dist.config.methods import has_curriculum, reads_scores, relies_selectively
from distill_dist.config.schema import RunConfig
from distill_dist.curriculum.order import RandomOrder
from distill_dist.curriculum.pacing import MAX_STAGES
from distill_dist.curriculum.plan import MOST_CLASSES
from distill_dist.data.loader import StepLoader
from distill_dist.data.read_report import read_report
from distill_dist.data.window_reader import WindowedSplit
from distill_dist.engine import Engine
from distill_dist.errors import UserError
from distill_dist.evaluation.scoring import ScoringPass, evaluating
from distill_dist.evaluation.split import SignalSource
from distill_dist.records import Step
from distill_dist.run_folder import RunFolder
from distill_dist.stop_signal import StopSignal
from distill_dist.teacher.identity import Identity, joint_fingerprint
from distill_dist.teacher.local import Teacher
from distill_dist.telemetry import Telemetry

_log = logging.getLogger(__name__)


def plain_loader(config: RunConfig, loaded: Loaded, group: StudentGroup) -> StepLoader:
    """Steps in random order, with what every row relies on its teacher before anything is known of it."""
    initial = config.reliance.initial

    def alike(rows: np.ndarray) -> np.ndarray:
        return np.full(len(rows), initial, np.float32)

    return StepLoader(
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
        aligned_share=config.alignment.share if loaded.objective.is_aligned else 1.0,
        reliance_of=alike if relies_selectively(config) else None,
    )


def first_step(loader: StepLoader) -> Step:
    """Step 0 of the random order: rows for the probe, whatever epoch the run goes on in."""
    return next(loader.steps(start_step=0, epochs=1))


def build_epochs(
    config: RunConfig,
    loaded: Loaded,
    plain: StepLoader,
    curriculum: Curriculum,
    teacher: Teacher | None,
    telemetry: Telemetry,
    *,
    last_step: int,
) -> Epochs:
    """The run's epochs; logs what reading them will cost."""
    windowed = _windowed_split(config, loaded)
    return Epochs(
        curriculum,
        _curriculum_loader(config, plain, curriculum, windowed),
        windowed,
        teacher,
        loaded.objective.signal_spec,
        prefetch=config.teacher.prefetch,
        epochs=config.train.epochs,
        last_step=last_step,
        report=CurriculumReport(
            curriculum, telemetry, loaded.train.labels, loaded.manifest.labels, config.curriculum.measure
        ),
    )


def _curriculum_loader(
    config: RunConfig, plain: StepLoader, curriculum: Curriculum, windowed: WindowedSplit | None
) -> StepLoader:
    """``plain`` in the curriculum's order, with its λ."""
    return replace(
        plain,
        split=plain.split if windowed is None else windowed,
        rows_at=curriculum.rows_at,
        reliance_of=curriculum.reliance_of if relies_selectively(config) else None,
        confidence_of=curriculum.confidence_of if config.alignment.choose == "hardest" else None,
    )


def _windowed_split(config: RunConfig, loaded: Loaded) -> WindowedSplit | None:
    """What reads shards whole, where `data.window_shards` says so. Logs what reading will cost, either way."""
    _log.info("%s", read_report(loaded.train, window_shards=config.data.window_shards).text)
    return WindowedSplit(loaded.train) if config.data.window_shards else None


def build_curriculum(
    config: RunConfig,
    place: Place,
    loaded: Loaded,
    group: StudentGroup,
    folder: RunFolder,
    engine: Engine,
    stop: StopSignal,
    *,
    student: SignalSource,
    teacher: SignalSource | None,
    taught_by: Sequence[Identity],
    loader: StepLoader,
    served: ServedScores | None,
) -> Curriculum:
    """The curriculum of a run, at its checkpoint."""
    saved = _saved(loaded)
    scoring = ScoringPass(
        loaded.train,
        rank=group.rank,
        size=group.size,
        micro_tokens=config.batch.micro_tokens,
        pad_token_id=loaded.manifest.pad_token_id,
        num_classes=len(loaded.manifest.labels),
        sum_=group.sum_,
        device=place.device,
        ahead=config.teacher.prefetch,
    )
    maker = SnapshotMaker(
        root=folder.snapshots,
        group=group,
        scoring=scoring,
        labels=loaded.train.labels,
        manifest=loaded.identity["prepared data"],
        run=run_digest(loaded.identity),
        measure=config.curriculum.measure,
        smoothing=config.curriculum.smoothing,
        keep=config.curriculum.keep_snapshots,
        with_teacher_loss=config.reliance.rule == "weighted",
        should_stop=stop.asked,
        evaluating=lambda: evaluating(engine.module),
    )
    _warn_of_idle(config, loader.steps_per_epoch)
    groups = _groups(config, loaded)
    if groups is not None:
        _check_classes(config, loader.steps_per_epoch, num_groups=int(groups.max()) + 1)
    return Curriculum(
        config=config,
        split=loaded.train,
        groups=groups,
        group=group,
        folder=folder,
        scores=ScoresOfRun(
            config=config,
            maker=maker,
            student=student,
            teacher=teacher,
            steps_per_epoch=loader.steps_per_epoch,
            logs=lambda: [] if served is None else served.paths,
            taught_by=joint_fingerprint(taught_by),
            pinned=saved.get("snapshot"),
        ),
        steps_per_epoch=loader.steps_per_epoch,
        total_steps=config.train.epochs * loader.steps_per_epoch,
    )


def served_scores(
    config: RunConfig, loaded: Loaded, group: StudentGroup, folder: RunFolder
) -> ServedScores | None:
    """The score log, cut where the checkpoint stands; None where scores come from elsewhere."""
    if config.curriculum.score != "served" or not reads_scores(config):
        return None
    return ServedScores(
        folder.served,
        group,
        measure=config.curriculum.measure,
        lengths=_saved(loaded).get("served", {}),
        flush_every=config.train.log_every,
    )


def _saved(loaded: Loaded) -> dict[str, Any]:
    return {} if loaded.resumed is None else loaded.resumed.progress.get("curriculum", {})


def _warn_of_idle(config: RunConfig, steps_per_epoch: int) -> None:
    """Say what of the curriculum cannot act in a run of this length."""
    if not (has_curriculum(config) or reads_scores(config)):
        return
    last = config.train.epochs * steps_per_epoch
    last = min(last, config.train.max_steps or last)
    if config.curriculum.source == "student" and last <= steps_per_epoch:
        _log.warning(
            "the student's scores are known after the first epoch of %d steps, and this run ends with it: neither "
            "order nor reliance differ from none. Take more train.epochs, or curriculum.source=teacher", steps_per_epoch
        )  # fmt: skip
    window = config.batch.length_window
    if has_curriculum(config) and config.curriculum.pacing != "none" and steps_per_epoch < 4 * window:
        _log.warning(
            "the pool can change only every batch.length_window=%d steps, and an epoch has %d: take a smaller window",
            window, steps_per_epoch,
        )  # fmt: skip


def _check_classes(config: RunConfig, steps_per_epoch: int, *, num_groups: int) -> None:
    """Raises UserError before the first epoch for what the first plan could not hold."""
    changes = 1 if config.curriculum.pacing == "none" else -(-steps_per_epoch // config.batch.length_window)
    stages = min(MAX_STAGES, changes)
    levels = config.curriculum.buckets + stages
    if num_groups * levels > MOST_CLASSES:
        raise UserError(
            f"curriculum.stratify={config.curriculum.stratify}: {num_groups} groups of up to {levels} levels of "
            f"difficulty are more than {MOST_CLASSES} classes: take a lower curriculum.buckets, or a higher "
            "batch.length_window, with which the pool changes less often"
        )


def _groups(config: RunConfig, loaded: Loaded) -> np.ndarray | None:
    if config.curriculum.stratify == "none":
        return None
    if config.curriculum.stratify == "label":
        return loaded.train.labels
    if loaded.train.sources.min() < 0:
        raise UserError(
            f"curriculum.stratify: source, but {config.data.prepared} was prepared without data.source_column: prepare "
            "again with it (launcher/prepare.py --replace)"
        )
    return loaded.train.sources

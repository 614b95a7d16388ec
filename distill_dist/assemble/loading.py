"""What a student holds before it meets the others: models, data, the checkpoint to go on from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distill_dist import checkpoint
from distill_dist.assemble.best_model import check_best
from distill_dist.assemble.models import build_student, check_prepared
from distill_dist.assemble.objective import build_objective, build_width_maps
from distill_dist.assemble.place import Place
from distill_dist.assemble.resume import check_identity, run_identity
from distill_dist.assemble.saliency_of_run import why_no_saliency
from distill_dist.assemble.signal_cache_of_run import check_cache_dir
from distill_dist.assemble.teacher_pool import LocalModel, build_teachers, check_pool_fits, teacher_shapes
from distill_dist.config.deepspeed_json import load_deepspeed_json
from distill_dist.config.methods import reads_scores
from distill_dist.config.schema import RunConfig
from distill_dist.curriculum.score_file import scores_from_file
from distill_dist.data.loader import evaluation_batches
from distill_dist.data.manifest import Manifest, load_manifest, manifest_hash
from distill_dist.data.shards import PreparedSplit, open_split
from distill_dist.errors import UserError
from distill_dist.models.encoder import EncoderParts
from distill_dist.models.width_maps import WIDTH_MAPS, WidthMaps
from distill_dist.objectives.objective import Objective
from distill_dist.records import Batch
from distill_dist.run_folder import RunFolder


@dataclass(frozen=True)
class Loaded:
    """Everything of a student that needs no sibling."""

    manifest: Manifest
    train: PreparedSplit
    scored: dict[str, tuple[PreparedSplit, tuple[Batch, ...]]]  # and this rank's share of the rows
    tokenizer: Path
    student: EncoderParts
    local_teachers: tuple[LocalModel, ...]  # of every model; empty where others serve them
    objective: Objective
    maps: WidthMaps | None  # part of the student while it trains
    no_saliency: str | None  # why saliency loyalty is not defined; None: it is
    identity: dict[str, Any]
    resumed: checkpoint.Checkpoint | None
    best: dict[str, Any] | None  # see best_model.py
    deepspeed_json: dict[str, Any]


def load(config: RunConfig, place: Place, folder: RunFolder) -> Loaded:
    """Read models, data and the newest checkpoint. Raises UserError for whatever does not fit together."""
    prepared = Path(config.data.prepared)
    manifest = load_manifest(prepared)
    check_prepared(config, manifest)
    if not place.roles.teachers:
        check_cache_dir(config.teacher)  # where others teach, they write to it
    shapes = teacher_shapes(config)
    shape = shapes[0] if shapes else None
    local_teachers = () if place.roles.teachers else build_teachers(config, manifest, place.device)
    # After the teacher: where the student is cut from it, a missing folder is the teacher's.
    student = build_student(config, manifest)
    objective = build_objective(config, student, shape)
    check_pool_fits(config, student, shapes)
    maps = None if shape is None else build_width_maps(objective, student, shape)
    if maps is not None:
        student.model.add_module(WIDTH_MAPS, maps)
    identity = run_identity(config, manifest_hash(manifest))
    train = open_split(prepared, "train")
    if config.curriculum.source == "file" and reads_scores(config):
        scores_from_file(Path(config.curriculum.file), train.num_rows)  # refused here, nothing has begun
    resumed = _find_checkpoint(config, folder, identity)
    return Loaded(
        manifest=manifest,
        train=train,
        scored={
            name: _share(config, place, manifest, name)
            for name in manifest.splits
            if name not in ("train", *config.evaluate.skip)
        },
        tokenizer=prepared / "tokenizer",
        student=student,
        local_teachers=local_teachers,
        objective=objective,
        maps=maps,
        no_saliency=why_no_saliency(config, shapes),
        identity=identity,
        resumed=resumed,
        best=None if resumed is None else _best(config, folder, resumed),
        deepspeed_json=load_deepspeed_json(Path(config.deepspeed_config)),
    )


def _share(
    config: RunConfig, place: Place, manifest: Manifest, name: str
) -> tuple[PreparedSplit, tuple[Batch, ...]]:
    split = open_split(Path(config.data.prepared), name)
    batches = evaluation_batches(
        split,
        rank=place.student,
        size=len(place.roles.students),
        micro_tokens=config.batch.micro_tokens,
        pad_token_id=manifest.pad_token_id,
    )
    return split, tuple(batches)


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
        if 0 < config.train.max_steps < found.progress["step"]:
            raise UserError(
                f"train.max_steps={config.train.max_steps}, but {folder.path} is already at step "
                f"{found.progress['step']}: take a larger one, or another run_dir"
            )
    return found


def _best(config: RunConfig, folder: RunFolder, resumed: checkpoint.Checkpoint) -> dict[str, Any] | None:
    return check_best(resumed.progress, folder.model, max_steps=config.train.max_steps)


def start_step(loaded: Loaded) -> int:
    """Finished steps that the run goes on from; 0: a new one."""
    return 0 if loaded.resumed is None else int(loaded.resumed.progress["step"])

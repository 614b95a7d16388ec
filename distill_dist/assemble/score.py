"""Score a model that exists, against a teacher if there is one: what `launcher/evaluate.py` does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import transformers
from torch import Tensor

from distill_dist.assemble.device import pick_device
from distill_dist.assemble.models import check_tokenizer, check_vocabulary, read_teacher
from distill_dist.assemble.teacher_pool import joined
from distill_dist.config.pool import teachers_of
from distill_dist.config.schema import RunConfig
from distill_dist.data.loader import evaluation_batches
from distill_dist.data.manifest import load_manifest
from distill_dist.data.shards import open_split
from distill_dist.errors import UserError
from distill_dist.evaluation.split import SplitScorer, loyalty
from distill_dist.hub import locate
from distill_dist.models.build import load_teacher
from distill_dist.models.encoder import encoder_parts
from distill_dist.teacher.local import LocalTeacher


def score(config: RunConfig, *, student: str, teacher: str, split: str, saliency: bool) -> dict[str, Any]:
    """Metrics of the classifier at ``student`` on a prepared split; loyalty to ``teacher``, or to the run's.

    Both are folders, hub names or `pkg://PACKAGE/FOLDER`. One process. Raises UserError.
    """
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    prepared = Path(config.data.prepared)
    manifest = load_manifest(prepared)
    rows = open_split(prepared, split)
    device = pick_device(config.cluster.device, 0)

    def load_student(path: str) -> LocalTeacher:
        folder = locate(path, what="student")
        check_tokenizer(folder, prepared, what="student")
        model = load_teacher(folder, labels=manifest.labels, attention="eager", what="the student")
        check_vocabulary(model.config, manifest, what="student", value=path)
        return LocalTeacher(encoder_parts(model.to(device)), device, is_student=True)

    def load_its_teacher(path: str) -> LocalTeacher:
        folder = locate(path, what="teacher")
        parts = read_teacher(folder, manifest, prepared, device, what="teacher", value=path)
        if saliency and (manifest.teacher is not None or parts.logits_alone):
            raise UserError(
                f"--saliency compares what both models make of the same tokens, and the teacher {path!r} is a decoder "
                "or reads tokens of its own (data.teacher_tokenizer): leave it away"
            )
        return LocalTeacher(parts, device)

    def alone(tensor: Tensor) -> Tensor:
        return tensor

    batches = evaluation_batches(
        rows, rank=0, size=1, micro_tokens=config.batch.micro_tokens, pad_token_id=manifest.pad_token_id
    )
    scorer = SplitScorer(
        labels_N=rows.labels,
        batches=tuple(batches),
        num_classes=len(manifest.labels),
        with_f1=manifest.metric == "f1",
        sum_=alone,
        device=device,
        ahead=0,
    )
    ours = load_student(student)
    ours_NC = scorer.logits_NC(ours)
    found: dict[str, Any] = {"split": split, "rows": rows.num_rows, "student": scorer.metrics(ours_NC)}
    paths = [teacher] if teacher else [each.path for each in teachers_of(config)]
    if not paths:
        return found
    theirs = joined(config, [load_its_teacher(path) for path in paths])
    theirs_NC = scorer.logits_NC(theirs)
    found["teacher"] = scorer.metrics(theirs_NC)
    found["loyalty"] = loyalty(ours_NC, theirs_NC)
    if saliency:
        found["loyalty"]["sl_spearman_norm"] = scorer.saliency_loyalty(ours, theirs)
    return found

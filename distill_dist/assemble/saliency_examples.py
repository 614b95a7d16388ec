"""Rows of a split as student and teacher see them, token by token: a small JSON in the run folder, for the report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from distill_dist.assemble.device import pick_device
from distill_dist.assemble.evaluated_models import EvaluatedModels, read_models
from distill_dist.config.load import load_config
from distill_dist.config.schema import RunConfig
from distill_dist.data.loader import evaluation_batches
from distill_dist.data.manifest import TOKENIZER_FOLDER, Manifest, load_manifest, manifest_hash
from distill_dist.data.shards import PreparedSplit, open_split
from distill_dist.durable import write_json
from distill_dist.errors import UserError
from distill_dist.evaluation.metrics import probabilities
from distill_dist.evaluation.saliency import HEADLINE
from distill_dist.evaluation.split import SALIENCY, Embed, SignalSource, SplitScorer
from distill_dist.records import Batch
from distill_dist.report.run_record import read_object
from distill_dist.report.saliency import FILE, FORMAT
from distill_dist.run_folder import BEST

_DIGITS = 6  # significant ones, of what is drawn as a colour


def write_examples(run: Path, *, split: str, most_different: int, rows: tuple[int, ...]) -> None:
    """Fill `saliency.json` of ``run``: ``rows``, or the ``most_different`` ones by Spearman's ρ of ‖g‖.

    What is there of the same model and question stays. Raises UserError where the run has no model, no teacher that
    is there, or one that reads other tokens; or a row does not exist.
    """
    if not (run / "config.yaml").is_file():
        raise UserError(f"{run} has no config.yaml: saliency needs the run's own configuration")
    config = load_config(run / "config.yaml", [], need="evaluate")
    prepared = Path(config.data.prepared)
    manifest = load_manifest(prepared)
    asked = {
        "model": read_object(run / "model" / BEST, []).get("sha256"),
        "data": manifest_hash(manifest),
        "split": split,
        "most_different": most_different,
        "rows": list(rows),
    }
    there = read_object(run / FILE, [])
    if there.get("asked") == asked and there.get("format") == FORMAT:
        return
    data = open_split(prepared, split)
    if wrong := [row for row in rows if row >= data.num_rows]:
        raise UserError(f"--rows {wrong[0]}: {split} has the rows 0 to {data.num_rows - 1}")
    models = _models(run, config, manifest)
    chosen = (
        np.array(rows, np.int64) if rows else _most_different(config, manifest, models, data, most_different)
    )
    found = _examples(config, manifest, models, data, chosen)
    # in the order in which they were chosen
    found.sort(key=lambda row: chosen.tolist().index(row["row"]))
    record = {
        "format": FORMAT,
        "asked": asked,
        "split": split,
        "chosen": "as asked for"
        if rows
        else "those that the two see most differently (lowest Spearman of ‖g‖)",
        "labels": list(manifest.labels),
        "rows": found,
    }
    write_json(run / FILE, record)


def _models(run: Path, config: RunConfig, manifest: Manifest) -> EvaluatedModels:
    device = pick_device(config.cluster.device, 0)
    models = read_models(config, manifest, device, student=str(run / "model"), teacher="")
    if models.teacher is None:
        reason = models.teacher_missing or "the run has no teacher"
        raise UserError(f"{run}: saliency compares student and teacher: {reason}")
    if manifest.teacher is not None or any(parts.logits_alone for parts in models.teacher_parts):
        raise UserError(
            f"{run}: saliency compares what both models make of the same tokens, and the teacher is a decoder or "
            "reads tokens of its own (data.teacher_tokenizer)"
        )
    return models


def _batches(config: RunConfig, manifest: Manifest, data: PreparedSplit, rows: np.ndarray) -> list[Batch]:
    found = evaluation_batches(
        data, rank=0, size=1, micro_tokens=config.batch.micro_tokens, pad_token_id=manifest.pad_token_id, rows=rows
    )  # fmt: skip
    return list(found)


def _most_different(
    config: RunConfig, manifest: Manifest, models: EvaluatedModels, data: PreparedSplit, count: int
) -> np.ndarray:
    """Row numbers, the lowest correlation first; rows without one (a single token) never."""
    assert models.teacher is not None
    scorer = SplitScorer(
        labels_N=data.labels,
        batches=tuple(_batches(config, manifest, data, np.arange(data.num_rows))),
        num_classes=len(manifest.labels),
        metric=manifest.metric,
        sum_=_alone,
        device=models.device,
        ahead=0,
    )
    correlation_N = scorer.saliency_rows(models.student, models.teacher)[HEADLINE]
    order = np.argsort(correlation_N, kind="stable")  # NaN last
    return order[: min(count, int((~np.isnan(correlation_N)).sum()))]


def _alone(tensor: Tensor) -> Tensor:
    return tensor


def _examples(
    config: RunConfig, manifest: Manifest, models: EvaluatedModels, data: PreparedSplit, rows: np.ndarray
) -> list[dict[str, Any]]:
    assert models.teacher is not None
    path = Path(config.data.prepared) / TOKENIZER_FOLDER / "tokenizer.json"
    tokenizer = Tokenizer.from_str(path.read_text(encoding="utf-8"))
    # ascending: whoever reads rows reads them in the order of the shards
    batches = _batches(config, manifest, data, np.sort(rows))
    embeds = models.embeds() or (None, None)
    found = []
    for batch in batches:
        student = _views(models.student, batch, embeds[0])
        teacher = _views(models.teacher, batch, embeds[1])
        for place in torch.nonzero(batch.is_real_B).flatten().tolist():
            length = int(batch.attention_mask_BL[place].sum())
            ids = batch.input_ids_BL[place, :length].tolist()
            norms = [np.array(view[place]["norm"]) for view in (student, teacher)]
            found.append(
                {
                    "row": int(batch.ids_B[place]),
                    "label": int(batch.labels_B[place]),
                    "tokens": [tokenizer.id_to_token(number) or "?" for number in ids],
                    "student": student[place],
                    "teacher": teacher[place],
                    "correlation": _spearman(*norms),
                }
            )
    return found


def _views(model: SignalSource, batch: Batch, embed: Embed | None) -> list[dict[str, Any]]:
    """What a model makes of every row of ``batch``: probabilities [C], ‖g‖ [l] and g·E [l] of its real tokens."""
    ((_, (signal,)),) = model.signals([batch], lambda one: (one,), SALIENCY, ahead=0)
    assert signal.embedding_gradient_norm_BLV is not None
    assert signal.embedding_gradient_BLVH is not None
    norm_BL = signal.embedding_gradient_norm_BLV[..., 0].double().cpu()
    said_BC = probabilities(signal.logits_BC.double().cpu().numpy())
    dot_BL = None
    if embed is not None:
        unit_BLH = signal.embedding_gradient_BLVH[..., 0, :].double().cpu()
        dot_BL = norm_BL * (unit_BLH * embed(batch).double().cpu()).sum(dim=-1)
    found = []
    for place, length in enumerate(batch.attention_mask_BL.sum(dim=1).tolist()):
        found.append(
            {
                "probabilities": _short(said_BC[place]),
                "norm": _short(norm_BL[place, :length].numpy()),
                "dot": None if dot_BL is None else _short(dot_BL[place, :length].numpy()),
            }
        )
    return found


def _short(values: np.ndarray) -> list[float]:
    return [float(f"{value:.{_DIGITS}g}") for value in values.tolist()]


def _spearman(first: np.ndarray, second: np.ndarray) -> float | None:
    """None for a row without an order of its tokens."""
    from scipy.stats import spearmanr  # half a second, once

    if len(first) < 2 or np.ptp(first) == 0 or np.ptp(second) == 0:
        return None
    return float(spearmanr(first, second).statistic)

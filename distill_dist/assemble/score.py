"""Score a model that exists, against a teacher if there is one: what `launcher/evaluate.py` does."""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from distill_dist.assemble.device import pick_device
from distill_dist.assemble.evaluated_models import EvaluatedModels, read_models
from distill_dist.config.schema import RunConfig
from distill_dist.data.loader import RowSource, evaluation_batches
from distill_dist.data.manifest import TOKENIZER_FOLDER, Manifest, load_manifest, manifest_hash
from distill_dist.data.shards import PreparedSplit, open_split
from distill_dist.errors import UserError
from distill_dist.evaluation.bootstrap import CONFIDENCE, METHOD, intervals
from distill_dist.evaluation.consistency import PerturbedRows, agreement, kept_labels
from distill_dist.evaluation.metrics import class_summed, loyalty_summed, probabilities, task_summed
from distill_dist.evaluation.perturb import KINDS, Perturbation
from distill_dist.evaluation.predictions import Predictions
from distill_dist.evaluation.split import SplitScorer
from distill_dist.evaluation.summed import Floats, Summed, mean_of
from distill_dist.models.tokenizer import prepared_tokenizer

_NO_WORD = re.compile(r"\[unused\d+\]")  # BERT's vocabulary keeps places that no text uses
Metrics = dict[tuple[str, ...], Summed]


@dataclass(frozen=True)
class Asked:
    """What `launcher/evaluate.py` is asked for, besides the configuration."""

    student: str
    teacher: str = ""  # "": the run's, if it can be found
    splits: tuple[str, ...] = ()  # (): every one but train
    saliency: bool = False
    saliency_rows: int = 0  # of every split, evenly spaced; 0: all
    consistency: bool = False
    rate: float = 0.15  # share of tokens that a perturbation touches
    seed: int = 0  # of perturbations and resamples: the same for every run that is compared
    resamples: int = 1000


@dataclass(frozen=True)
class Scored:
    """``record`` is JSON; ``predictions`` by split, in the order of the splits."""

    record: dict[str, Any]
    predictions: dict[str, Predictions]


def score(config: RunConfig, asked: Asked) -> Scored:
    """Every metric of the student, the teacher and both on prepared splits. One process. Raises UserError."""
    prepared = Path(config.data.prepared)
    manifest = load_manifest(prepared)
    splits = _splits(asked, manifest, prepared)
    device = pick_device(config.cluster.device, 0)
    models = read_models(config, manifest, device, student=asked.student, teacher=asked.teacher)
    _check_comparable(asked, manifest, models)
    found, predictions = {}, {}
    with contextlib.closing(models):
        for name, rows in splits.items():
            found[name], predictions[name] = _Split(config, asked, manifest, models, rows).scored()
    first = next(iter(splits))
    record = {
        "split": first,
        **found[first],
        "splits": found,
        "models": models.described,
        "data": {
            "prepared": str(prepared),
            "manifest": manifest_hash(manifest),
            "task": manifest.task,
            "labels": list(manifest.labels),
        },
        "settings": {
            "intervals": METHOD,
            "confidence": CONFIDENCE,
            "resamples": asked.resamples,
            "seed": asked.seed,
            **({"rate": asked.rate} if asked.consistency else {}),
            **({"saliency_rows": asked.saliency_rows} if asked.saliency and asked.saliency_rows else {}),
        },
    }
    if models.teacher_missing is not None:
        record["teacher_missing"] = models.teacher_missing
    return Scored(record, predictions)


def check_splits(config: RunConfig, asked: Asked) -> Manifest:
    """Of the prepared data. Raises UserError where a split that is asked for is not there, or damaged."""
    prepared = Path(config.data.prepared)
    manifest = load_manifest(prepared)
    _splits(asked, manifest, prepared)
    return manifest


def _splits(asked: Asked, manifest: Manifest, prepared: Path) -> dict[str, PreparedSplit]:
    names = asked.splits or tuple(
        sorted(manifest.splits.keys() - {"train"}, key=lambda name: (name != "dev", name))
    )
    if not names:
        raise UserError(
            f"{prepared} has no split but train: prepare one to score, or name it with --split train"
        )
    return {name: open_split(prepared, name) for name in names}


def _check_comparable(asked: Asked, manifest: Manifest, models: EvaluatedModels) -> None:
    if asked.saliency and models.teacher is None:
        reason = f" ({models.teacher_missing})" if models.teacher_missing else ""
        raise UserError(f"--saliency compares with a teacher: give --teacher FOLDER{reason}")
    has_own_tokens = models.teacher is not None and manifest.teacher is not None
    by_logits_alone = any(parts.logits_alone for parts in models.teacher_parts)
    if asked.saliency and (has_own_tokens or by_logits_alone):
        raise UserError(
            "--saliency compares what both models make of the same tokens, and the teacher is a decoder or reads "
            "tokens of its own (data.teacher_tokenizer): leave it away"
        )
    widths = [parts.embedding_size for parts in models.teacher_parts]
    if asked.saliency and len(set(widths)) > 1:
        raise UserError(
            f"--saliency: the teachers' embeddings are {widths} wide, and gradients of different widths cannot be "
            "joined: leave it away, or give one of them as --teacher"
        )
    if asked.consistency and has_own_tokens:
        raise UserError(
            "--consistency changes the tokens that both models read, and the teacher reads tokens of its own "
            "(data.teacher_tokenizer): leave it away"
        )


@dataclass(frozen=True)
class _Split:
    """One split under the models."""

    config: RunConfig
    asked: Asked
    manifest: Manifest
    models: EvaluatedModels
    rows: PreparedSplit

    def scored(self) -> tuple[dict[str, Any], Predictions]:
        """(its part of the record, what both models said of every row)."""
        scorer = self._scorer(self.rows)
        logits = self._logits(scorer)
        more = self._saliency()
        metrics = self._summed(logits)
        metrics |= {("loyalty", name): mean_of(values_N) for name, values_N in more.items()}
        if self.asked.consistency:
            metrics |= self._consistency(scorer, logits)
        limits = intervals(metrics, resamples=self.asked.resamples, seed=self.asked.seed)
        support = np.bincount(self.rows.labels, minlength=len(self.manifest.labels))
        record = {
            "rows": self.rows.num_rows,
            **_tree({path: _number(summed.value) for path, summed in metrics.items()}),
            "support": dict(zip(self.manifest.labels, support.tolist(), strict=True)),
            "intervals": _tree({path: ends and list(ends) for path, ends in limits.items()}),
        }
        of_rows = {who: probabilities(found_NC) for who, found_NC in logits.items()}
        predictions = Predictions(self.rows.labels, of_rows["student"], of_rows.get("teacher"), more)
        return record, predictions

    def _scorer(self, rows: RowSource, some: np.ndarray | None = None) -> SplitScorer:
        """Of ``rows``; ``some`` [n] of them, and nothing of the others."""
        batches = evaluation_batches(
            rows,
            rows=some,
            rank=0,
            size=1,
            micro_tokens=self.config.batch.micro_tokens,
            pad_token_id=self.manifest.pad_token_id,
        )
        return SplitScorer(
            labels_N=self.rows.labels,
            batches=tuple(batches),
            num_classes=len(self.manifest.labels),
            metric=self.manifest.metric,
            sum_=_alone,
            device=self.models.device,
            ahead=0,
        )

    def _logits(self, scorer: SplitScorer) -> dict[str, Floats]:
        found: dict[str, Floats] = {"student": scorer.logits_NC(self.models.student)}
        if self.models.teacher is not None:
            found["teacher"] = scorer.logits_NC(self.models.teacher)
        for who, logits_NC in found.items():
            if bad := int((~np.isfinite(logits_NC)).any(axis=1).sum()):
                raise UserError(
                    f"the {who}'s logits are not finite for {bad} of {len(logits_NC)} rows: it diverged, or its "
                    "weights are damaged: score another model"
                )
        return found

    def _summed(self, logits: Mapping[str, Floats]) -> Metrics:
        found: Metrics = {}
        for who, logits_NC in logits.items():
            of_task = task_summed(logits_NC, self.rows.labels, metric=self.manifest.metric)
            of_classes = class_summed(logits_NC, self.rows.labels, self.manifest.labels)
            found |= {(who, name): summed for name, summed in of_task.items()}
            found |= {("per_class", who, *path): summed for path, summed in of_classes.items()}
        if "teacher" in logits:
            loyal = loyalty_summed(logits["student"], logits["teacher"])
            found |= {("loyalty", name): summed for name, summed in loyal.items()}
        return found

    def _saliency(self) -> dict[str, Floats]:
        if not self.asked.saliency:
            return {}
        assert self.models.teacher is not None
        some = evenly_spaced(self.rows.num_rows, self.asked.saliency_rows)
        of_some = self._scorer(self.rows, some)
        found: dict[str, Floats] = {
            **of_some.saliency_rows(self.models.student, self.models.teacher, embeds=self.models.embeds())
        }
        return found

    def _consistency(self, scorer: SplitScorer, before: Mapping[str, Floats]) -> Metrics:
        special, words = vocabulary(Path(self.config.data.prepared))
        found: Metrics = {}
        for kind in KINDS:
            perturb = Perturbation(kind, self.asked.rate, self.asked.seed, special, words)
            batches = self._scorer(PerturbedRows(self.rows, perturb)).batches
            after = self._logits(replace(scorer, batches=batches))
            of_kind = {f"{who}_keeps": kept_labels(before[who], after[who]) for who in after}
            if "teacher" in after:
                of_kind |= agreement(after["student"], after["teacher"])
            found |= {("consistency", kind, name): summed for name, summed in of_kind.items()}
        return found


def evenly_spaced(num_rows: int, most: int) -> np.ndarray:
    """At most ``most`` of the row numbers, int64, increasing, the first and the last among them; 0: all."""
    if not 0 < most < num_rows:
        return np.arange(num_rows)
    return np.linspace(0, num_rows - 1, most).round().astype(np.int64)


def vocabulary(prepared: Path) -> tuple[np.ndarray, np.ndarray]:
    """(ids that frame texts, ids that a text may have), both sorted, of the prepared data's tokenizer.

    An unknown word is a word of the text, but none to replace another one by.
    """
    tokenizer = prepared_tokenizer(prepared / TOKENIZER_FOLDER)
    special = set(tokenizer.all_special_ids)
    names = tokenizer.get_vocab().items()
    words = sorted(number for name, number in names if number not in special and not _NO_WORD.fullmatch(name))
    return np.array(sorted(special - {tokenizer.unk_token_id})), np.array(words)


def _alone(tensor: Tensor) -> Tensor:
    return tensor


def _number(value: float) -> float | None:
    """JSON has no NaN, and no infinity: null where no row has a value."""
    return value if math.isfinite(value) else None


def _tree(flat: Mapping[tuple[str, ...], Any]) -> dict[str, Any]:
    """Nested mappings of what ``flat`` has by path."""
    found: dict[str, Any] = {}
    for path, value in flat.items():
        inner = found
        for key in path[:-1]:
            inner = inner.setdefault(key, {})
        inner[path[-1]] = value
    return found

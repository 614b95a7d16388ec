"""What a model's user has to know of its limits, as far as the run's own files tell; each a line of Markdown."""

from __future__ import annotations

import math
from collections.abc import Iterator

from distill_dist.config.pool import teachers_of
from distill_dist.config.schema import RunConfig
from distill_dist.data.manifest import Manifest
from distill_dist.export.facts import SplitFigures
from distill_dist.export.markdown import code


def limits_of(
    config: RunConfig,
    manifest: Manifest | None,
    splits: tuple[SplitFigures, ...],
    *,
    task: str,
    lower_cases: bool,
    with_intervals: bool,
) -> tuple[str, ...]:
    """The lines; ``task`` may hold anything."""
    return (
        f"Trained on {_count(manifest)} rows of {code(task)} alone. It gives every text one of its classes, also where "
        "none fits, and nothing is known of it on texts of another kind.",
        *_language(config, manifest, lower_cases),
        *_length(config, manifest),
        *_figures(config, splits),
        *_held_out(config, splits),
        *(() if with_intervals else ("Its figures have no intervals: they were not computed.",)),
        f"One run with one seed ({config.seed}): how far another seed would move these numbers is not known.",
        *_training(config),
        "Exported and checked on a CPU in fp32; in half precision, or on another device, these files have not been run "
        "by the export.",
        "Bias, fairness and texts that are meant to mislead it were not examined.",
        "No licence is stated: those of the weights that it began from and of its rows hold.",
    )


def _count(manifest: Manifest | None) -> str:
    train = None if manifest is None else manifest.splits.get("train")
    return "the" if train is None else f"{train.rows:,}"


def _held_out(config: RunConfig, splits: tuple[SplitFigures, ...]) -> Iterator[str]:
    drawn = [code(split.name) for split in splits if split.name in config.data.hold_out]
    if drawn:
        yield (
            f"Rows of {' and '.join(drawn)} were drawn out of the training rows before the training: they taught it "
            "nothing, and are of the same origin."
        )


def _language(config: RunConfig, manifest: Manifest | None, lower_cases: bool) -> Iterator[str]:
    if config.data.source == "synthetic_nli":
        yield (
            "Its language is a generated one; what is not of it is spelled out, or unknown to it: it shows a method, "
            "and is of no other use."
        )
        return
    case = "; its tokenizer makes all letters small" if lower_cases else ""
    yield f"The language is that of the rows; nothing was tried in another one{case}."


def _length(config: RunConfig, manifest: Manifest | None) -> Iterator[str]:
    train = None if manifest is None else manifest.splits.get("train")
    cut = ""
    if train is not None:
        cut = f"; {train.truncated:,} of the {train.rows:,} training rows were cut to that"
    yield f"It was trained with at most {config.data.max_length} tokens a text (or pair){cut}."


def _figures(config: RunConfig, splits: tuple[SplitFigures, ...]) -> Iterator[str]:
    for split in splits:
        accuracy = split.student.get("accuracy")
        if accuracy is None or not split.rows:
            continue
        error = math.sqrt(accuracy.value * (1 - accuracy.value) / split.rows)
        rows = f"{split.rows:,} rows of {code(split.name)}"
        yield f"{rows} leave a standard error of {100 * error:.1f} points of accuracy."
    by = config.evaluate.select_on
    chosen = (
        f"the best of up to {config.train.epochs} epochs was chosen by them, and settings may have been"
        if config.train.epochs > 1
        else "settings may have been chosen by them"
    )
    others = ", ".join(code(split.name) for split in splits if split.name != by)
    told = f"{others} chose nothing inside the run" if others else "no other rows were scored"
    yield f"Figures on {code(by)} are optimistic: {chosen}; {told}."


def _training(config: RunConfig) -> Iterator[str]:
    if config.student.freeze_embeddings:
        yield "The embeddings were kept as they were in the model that it began from."
    if config.method != "finetune" and teachers_of(config):
        yield "It was taught to behave as its teacher does, mistakes included (see the loyalty figures)."

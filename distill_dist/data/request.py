"""What was asked of `prepare`: compared with what a prepared folder was made from."""

from __future__ import annotations

from typing import Any

from distill_dist.config.methods import teacher_max_length
from distill_dist.config.schema_data import DataConfig
from distill_dist.data.manifest import Manifest
from distill_dist.data.sources import Source
from distill_dist.data.tasks import Task
from distill_dist.data.tokenization import TRUNCATION


def build_request(
    config: DataConfig,
    task: Task,
    *,
    tokenizer: str,
    sources: dict[str, Source],
    teacher_tokenizer: str | None = None,
) -> dict[str, Any]:
    """Everything that determines the prepared rows, as JSON; ``tokenizer`` and ``teacher_tokenizer`` are fingerprints.

    Input counts by its contents, not by where it lies: a folder that was moved is the same input.
    """
    teacher = {
        "tokenizer": teacher_tokenizer,
        "max_length": teacher_max_length(config),
        "separator": config.teacher_separator,
    }
    return {
        "source": config.source,
        "task": config.task,
        "layouts": [[*layout.texts, layout.label] for layout in task.layouts],
        "source_column": config.source_column,
        "labels": list(task.labels),
        "max_length": config.max_length,
        "truncation": TRUNCATION,
        "rows_per_shard": config.rows_per_shard,
        "on_bad_row": config.on_bad_row,
        "tokenizer": tokenizer,
        "splits": {split: source.identity for split, source in sources.items()},
        # no key without it: what was prepared before there was one is still the same
        **({} if teacher_tokenizer is None else {"teacher": teacher}),
    }


def list_changes(manifest: Manifest, request: dict[str, Any]) -> list[str]:
    """`key: old -> new` for everything in which ``request`` differs from what the folder was made from."""
    old, new = _flat(manifest.request), _flat(request)
    keys = dict.fromkeys([*old, *new])
    return [f"{key}: {_show(old, key)} -> {_show(new, key)}" for key in keys if old.get(key) != new.get(key)]


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat.update(_flat(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = value
    return flat


def _show(flat: dict[str, Any], key: str) -> str:
    return f"{flat[key]}".replace("\n", "\\n") if key in flat else "(none)"

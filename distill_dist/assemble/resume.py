"""Whether a checkpoint belongs to this run: what may change between a stop and its resume, and what may not."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from typing import Any

from distill_dist.config.schema import RunConfig
from distill_dist.errors import UserError

# Fields that change neither the order of samples nor, up to summation order, the update of a step.
_FREE = (
    "label", "run_dir", "deepspeed_config", "data.", "cluster.", "evaluate.", "teacher.prefetch", "teacher.deadline_s",
    "teacher.patience_s", "teacher.lease_s", "teacher.rest_after_s", "teacher.check_every_s",
    "teacher.shards", "teacher.offload", "teacher.batch_tokens", "teacher.cache_mib", "teacher.cache_dir",
    "batch.micro_tokens", "batch.pad_to", "train.max_steps", "train.resume", "train.checkpoint_every",
    "train.keep_last", "train.keep_best", "train.background_save", "train.log_every", "train.trace",
    "student.attention", "student.checkpointing", "student.compile", "alignment.probe", "alignment.tolerance",
    "curriculum.memory_mib", "curriculum.keep_snapshots", "curriculum.final_snapshot",
)  # fmt: skip
_FIXED = (
    "data.window_shards",
    "evaluate.select_on",
)  # although they are below a free one: of order, of the best epoch


def run_identity(config: RunConfig, manifest_hash: str) -> dict[str, Any]:
    """Everything that must be equal for a checkpoint to go on; flat, by dotted key, ready for JSON."""
    found = {key: value for key, value in _flat(asdict(config), "") if is_compared(key)}
    return {**found, "prepared data": manifest_hash}


def is_compared(key: str) -> bool:
    """Whether the field at the dotted ``key`` changes what comes out."""
    return key in _FIXED or not key.startswith(_FREE)


def run_digest(identity: dict[str, Any]) -> str:
    """sha256 of ``run_identity``: what a run's snapshots are signed with."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def check_identity(saved: dict[str, Any], now: dict[str, Any], *, checkpoint: str) -> None:
    """Raises UserError that lists every difference between the saved run and this one."""
    keys = sorted(saved.keys() | now.keys())
    changes = [
        f"  {key}: {saved.get(key)!r} -> {now.get(key)!r}" for key in keys if saved.get(key) != now.get(key)
    ]
    if changes:
        raise UserError(
            f"{checkpoint} was written by another run:\n"
            + "\n".join(changes)
            + "\nstart in another run_dir, or set these back"
        )


def _flat(tree: dict[str, Any], prefix: str) -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for key, value in tree.items():
        if isinstance(value, dict):
            found += _flat(value, f"{prefix}{key}.")
        else:
            found.append((f"{prefix}{key}", list(value) if isinstance(value, tuple) else value))
    return found

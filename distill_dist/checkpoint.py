"""Checkpoints: one folder each, complete or absent, readable at any world size.

A folder ``step-00000100`` holds ``tensors.safetensors`` (weights, moments, by name), ``progress.json`` (cursor and
bookkeeping) and, written once both were read back, ``COMPLETE`` with the checksums. Nothing in it is a pickle.
"""

from __future__ import annotations

import errno
import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from distill_dist.durable import durable_folder, read_anew, remove_folder, sha256_file
from distill_dist.errors import UserError

FORMAT = 1
MARKER = "COMPLETE"
_TENSORS, _PROGRESS = "tensors.safetensors", "progress.json"
_FILES = {_TENSORS, _PROGRESS}
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """One complete checkpoint as read back."""

    folder: Path
    tensors: dict[str, Tensor]
    progress: dict[str, Any]


@dataclass(frozen=True)
class Keep:
    """Which checkpoints stay: the ``last`` newest, at least 1, and those of the ``best`` best epochs."""

    last: int
    best: int = 0


def save(
    root: Path,
    *,
    step: int,
    previous: int,
    tensors: dict[str, Tensor],
    progress: dict[str, Any],
    keep: Keep,
) -> Path:
    """Write the checkpoint of ``step`` below ``root``, read it back, mark it, prune the others. One process only.

    ``progress["score"]``: the epoch's score where the checkpoint stands at the end of one, else None. ``previous``: the
    step that this run saved, or went on from, before; 0 if there is none. Whatever else is newer than that was passed
    over as damaged: it goes, and counts nothing. Raises OSError, SafetensorError on a full or broken disk.
    """
    folder = root / _name(step)
    root.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"format": FORMAT, **progress})
    with durable_folder(folder) as temporary:
        save_file(tensors, temporary / _TENSORS)
        (temporary / _PROGRESS).write_text(text, encoding="utf-8")
        for name in _FILES:
            read_anew(temporary / name)
        # first, by reads that can fail: a broken disk under mapped memory, as below, would kill the process
        checksums = {name: sha256_file(temporary / name) for name in sorted(_FILES)}
        _check_written(temporary, tensors, text)
        (temporary / MARKER).write_text(json.dumps(checksums), encoding="utf-8")
    others = [other for other in complete_folders(root) if other != folder]
    passed_over = [other for other in others if other.name > _name(previous)]
    good = [other for other in others if other not in passed_over]
    kept = {folder, *good[max(0, len(good) + 1 - keep.last) :], *_best([*good, folder], keep.best)}
    for old in others:
        if old not in kept:
            remove_folder(old)
    return folder


def _name(step: int) -> str:
    return f"step-{step:08d}"


def _check_written(folder: Path, tensors: dict[str, Tensor], text: str) -> None:
    """Raises OSError unless ``folder`` holds these very bits. Its checksums alone would bless what a disk garbled."""
    found = load_file(folder / _TENSORS)
    same = found.keys() == tensors.keys() and all(_same_bits(found[name], tensors[name]) for name in tensors)
    if not same or (folder / _PROGRESS).read_text(encoding="utf-8") != text:
        raise OSError(errno.EIO, "what was read back is not what was written", str(folder))


def _same_bits(left: Tensor, right: Tensor) -> bool:
    """NaN is equal to itself here, and 0 not to -0."""
    if left.shape != right.shape or left.dtype != right.dtype:
        return False
    return torch.equal(left.reshape(-1).view(torch.uint8), right.reshape(-1).view(torch.uint8))


def _best(folders: list[Path], number: int) -> list[Path]:
    """The ``number`` of these with the best score of an epoch; of equal ones the earlier."""
    scored = [(-score, folder) for folder in folders if (score := _score(folder)) is not None]
    return [folder for _, folder in sorted(scored)[:number]]


def _score(folder: Path) -> float | None:
    """None: none was measured at that step, or it cannot be read."""
    try:
        progress = json.loads((folder / _PROGRESS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    score = progress.get("score") if isinstance(progress, dict) else None
    return score if isinstance(score, float) else None


def complete_folders(root: Path) -> list[Path]:
    """Folders with a marker, oldest first."""
    return sorted(folder for folder in root.glob("step-*") if (folder / MARKER).is_file())


def newest(root: Path) -> Checkpoint | None:
    """The newest good checkpoint below ``root``, or None if there is none at all.

    A damaged one is named and passed over. Raises UserError when all are damaged or of another format.
    """
    folders = complete_folders(root)
    # a crash leaves none: the marker stands in a checkpoint before that gets its name
    unmarked = [folder for folder in sorted(root.glob("step-*")) if folder not in folders]
    for folder in unmarked:
        _log.warning("checkpoint %s is damaged (it has no %s); it counts for nothing", folder, MARKER)
    for folder in reversed(folders):
        damage = _damage(folder)
        if damage is None:
            progress = json.loads((folder / _PROGRESS).read_text(encoding="utf-8"))
            if progress["format"] != FORMAT:
                raise UserError(
                    f"{folder} has checkpoint format {progress['format']}, this version reads {FORMAT}; "
                    "finish the run with the version that began it, or start in another run_dir"
                )
            return Checkpoint(folder, load_file(folder / _TENSORS), progress)
        _log.warning("checkpoint %s is damaged (%s); trying the one before", folder, damage)
    if folders or unmarked:
        raise UserError(f"every checkpoint below {root} is damaged; start again in another run_dir")
    return None


def _damage(folder: Path) -> str | None:
    try:
        checksums = json.loads((folder / MARKER).read_text(encoding="utf-8"))
        if not isinstance(checksums, dict) or checksums.keys() != _FILES:
            return f"{MARKER} does not list {' and '.join(sorted(_FILES))}"
        for name, checksum in checksums.items():
            if sha256_file(folder / name) != checksum:
                return f"{name} does not match its checksum"
    except (OSError, ValueError) as error:
        return str(error)
    return None

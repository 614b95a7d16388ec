"""Checkpoints: one folder each, complete or absent, readable at any world size.

A folder ``step-00000100`` holds ``tensors.safetensors`` (weights, moments, by name), ``progress.json`` (cursor and
bookkeeping) and, written last, ``COMPLETE`` with the checksums. Nothing in it is a pickle.
"""

from __future__ import annotations

import json
import logging
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from distill_dist.durable import durable_folder, sha256_file
from distill_dist.errors import UserError

FORMAT = 1
MARKER = "COMPLETE"
_FILES = {"tensors.safetensors", "progress.json"}
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """One complete checkpoint as read back."""

    folder: Path
    tensors: dict[str, Tensor]
    progress: dict[str, Any]


def save(
    root: Path, *, step: int, previous: int, tensors: dict[str, Tensor], progress: dict[str, Any], keep: int
) -> Path:
    """Write the checkpoint of ``step`` below ``root`` and prune to the newest ``keep``. One process only.

    ``previous``: the step that this run saved, or went on from, before; 0 if there is none. Whatever else is newer
    than that was passed over as damaged: it goes, and counts nothing. Raises OSError, SafetensorError on a full disk.
    """
    folder = root / _name(step)
    root.mkdir(parents=True, exist_ok=True)
    with durable_folder(folder) as temporary:
        save_file(tensors, temporary / "tensors.safetensors")
        (temporary / "progress.json").write_text(json.dumps({"format": FORMAT, **progress}), encoding="utf-8")
        checksums = {path.name: sha256_file(path) for path in sorted(temporary.iterdir())}
        (temporary / MARKER).write_text(json.dumps(checksums), encoding="utf-8")
    others = [other for other in complete_folders(root) if other != folder]
    passed_over = [other for other in others if other.name > _name(previous)]
    good = [other for other in others if other not in passed_over]
    for old in passed_over + good[: max(0, len(good) + 1 - keep)]:
        shutil.rmtree(old)
    return folder


def _name(step: int) -> str:
    return f"step-{step:08d}"


def complete_folders(root: Path) -> list[Path]:
    """Folders with a marker, oldest first."""
    return sorted(folder for folder in root.glob("step-*") if (folder / MARKER).is_file())


def newest(root: Path) -> Checkpoint | None:
    """The newest good checkpoint below ``root``, or None if there is none at all.

    A damaged one is named and passed over. Raises UserError when all are damaged or of another format.
    """
    folders = complete_folders(root)
    for folder in reversed(folders):
        damage = _damage(folder)
        if damage is None:
            progress = json.loads((folder / "progress.json").read_text(encoding="utf-8"))
            if progress["format"] != FORMAT:
                raise UserError(
                    f"{folder} has checkpoint format {progress['format']}, this version reads {FORMAT}; "
                    "finish the run with the version that began it, or start in another run_dir"
                )
            return Checkpoint(folder, load_file(folder / "tensors.safetensors"), progress)
        _log.warning("checkpoint %s is damaged (%s); trying the one before", folder, damage)
    if folders:
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

"""Whether `model/` is what the checkpoint says it is, when a run goes on."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from distill_dist.durable import sha256_file
from distill_dist.errors import UserError
from distill_dist.run_folder import BEST

_log = logging.getLogger(__name__)


def check_best(progress: dict[str, Any], model: Path, *, max_steps: int) -> dict[str, Any] | None:
    """The best epoch so far, of which the folder ``model`` holds the weights; None: the next epoch exports anew.

    ``progress`` is the checkpoint's. Raises UserError where the weights are damaged or missing.
    """
    best: dict[str, Any] | None = progress["best"]
    if best is None:
        return None
    path = model / "model.safetensors"
    try:
        checksum = sha256_file(path)
    except OSError as error:
        raise UserError(_lost(path, str(error.strerror))) from error
    if checksum == best["sha256"]:
        return best
    record = _record(model)
    # A better epoch was exported and its checkpoint never came, or was passed over as damaged. It is done again,
    # and then exported again: with max_steps at this very step it would not be.
    if record.get("sha256") == checksum and record["step"] > progress["step"] != max_steps:
        _log.warning(
            "%s is of step %d, which is still to come: it will be written again", model, record["step"]
        )
        return None
    raise UserError(_lost(path, "does not match its checksum"))


def _record(model: Path) -> dict[str, Any]:
    try:
        found = json.loads((model / BEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _lost(path: Path, reason: str) -> str:
    return (
        f"{path}, the best epoch so far, is damaged or missing ({reason}): put it back, or start again in another "
        "run_dir"
    )

"""The model itself: weights and configuration as `transformers` reads them anywhere."""

from __future__ import annotations

import shutil
from pathlib import Path

from distill_dist.durable import sha256_file
from distill_dist.errors import UserError

WEIGHTS = "model.safetensors"


def copy_model(source: Path, folder: Path, *, sha256: str) -> None:
    """Weights and configuration, byte for byte. Raises UserError where the weights have not the checksum ``sha256``."""
    for name in ("config.json", WEIGHTS):
        shutil.copyfile(source / name, folder / name)  # not the mode: the run's weights are its owner's alone
    if sha256_file(folder / WEIGHTS) != sha256:
        raise UserError(
            f"{source / WEIGHTS} does not match the checksum that the run noted for it: it is damaged, or of another "
            "run; put the right one back"
        )

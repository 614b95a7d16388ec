"""The model itself: weights and configuration as `transformers` reads them anywhere."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from distill_dist.durable import sha256_file
from distill_dist.errors import UserError

WEIGHTS = "model.safetensors"


def check_model(
    source: Path, *, sha256: str, others: Mapping[str, str], copied_to: Path | None = None
) -> None:
    """Raises UserError where the weights, or one of the ``others`` by name, have not the checksum noted for them.

    With ``copied_to`` the copy there is read, and ``source`` is named.
    """
    for name, noted in {WEIGHTS: sha256, **others}.items():
        path = source / name
        try:
            found = sha256_file((copied_to or source) / name)
        except OSError as error:
            raise UserError(f"{path} cannot be read ({error.strerror}): put it back") from error
        if found != noted:
            raise UserError(
                f"{path} does not match the checksum that the run noted for it: it is damaged, changed, or of another "
                "run; put the right one back"
            )


def copy_model(source: Path, folder: Path, *, sha256: str) -> None:
    """Weights and configuration, byte for byte. Raises UserError where the copy has not the checksum ``sha256``."""
    for name in ("config.json", WEIGHTS):
        shutil.copyfile(source / name, folder / name)  # not the mode: the run's weights are its owner's alone
    check_model(source, sha256=sha256, others={}, copied_to=folder)  # what was checked may have changed since

"""The model itself: weights, configuration and tokenizer as `transformers` reads them anywhere."""

from __future__ import annotations

import shutil
from pathlib import Path

from transformers import AutoTokenizer

from distill_dist.durable import sha256_file
from distill_dist.errors import UserError
from distill_dist.models.build import naming_the_folder

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


def save_tokenizer(source: Path, folder: Path, *, max_length: int, takes_token_types: bool) -> None:
    """The tokenizer of ``source``, which from now on cuts to ``max_length`` tokens where it is asked to cut.

    What the run keeps knows only how much some model of its family can read, which may be more than this one can. A
    model without segments gets none: those of a pair would lie outside of RoBERTa's embedding.
    """
    with naming_the_folder(str(source), "tokenizer"):
        names = AutoTokenizer.from_pretrained(source).model_input_names
        kept = [name for name in names if takes_token_types or name != "token_type_ids"]
        tokenizer = AutoTokenizer.from_pretrained(source, model_max_length=max_length, model_input_names=kept)
    for name in (
        "is_local",
        "local_files_only",
    ):  # of this loading, which transformers 5 keeps as if they were settings
        tokenizer.init_kwargs.pop(name, None)
    tokenizer.save_pretrained(folder)

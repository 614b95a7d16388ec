"""The tokenizer beside a model, as `transformers` reads both anywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from distill_dist.errors import UserError
from distill_dist.models.build import naming_the_folder

# In one of these a tokenizer keeps its vocabulary, whatever its family and age.
VOCABULARIES = (
    "tokenizer.json", "vocab.txt", "vocab.json", "spiece.model", "spm.model", "tokenizer.model",
    "sentencepiece.bpe.model",
)  # fmt: skip


def prepared_tokenizer(folder: Path) -> Any:
    """The tokenizer in ``folder`` of prepared data. Raises UserError where it is gone or damaged."""
    remedy = "prepare the data again with launcher/prepare.py --replace, or put it back"
    if not any((folder / name).is_file() for name in VOCABULARIES):
        raise UserError(f"{folder} has no tokenizer.json, nor another file of a vocabulary: {remedy}")
    try:
        with naming_the_folder(str(folder), "tokenizer"):
            return AutoTokenizer.from_pretrained(folder)
    except UserError as error:
        raise UserError(f"{error}: {remedy}") from error


def save_tokenizer(source: Path, folder: Path, *, max_length: int, takes_token_types: bool) -> None:
    """The tokenizer of ``source``, which from now on cuts to ``max_length`` tokens where it is asked to cut.

    Prepared data's knows only how much some model of its family can read, which may be more than this one can. A model
    without segments gets none: DistilBERT takes no such argument, and a pair's lie outside of RoBERTa's embedding.
    Raises UserError where ``source`` has no vocabulary: `transformers` would make one of five tokens.
    """
    if not any((source / name).is_file() for name in VOCABULARIES):
        raise UserError(f"{source} has no tokenizer.json, nor another file of a vocabulary: put it back")
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

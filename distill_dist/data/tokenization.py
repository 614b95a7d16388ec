"""Texts -> token ids. The work is done by the Rust tokenizer, which uses all cores inside one call."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from distill_dist.config.schema_data import DataConfig
from distill_dist.data.synthetic_nli import build_tokenizer
from distill_dist.durable import sha256_file
from distill_dist.errors import UserError
from distill_dist.hub import locate

TRUNCATION = "longest_first"


@dataclass(frozen=True)
class Tokens:
    """One tokenised row: ids and token types int [2, L], and whether the text had more."""

    tokens: np.ndarray
    truncated: bool


class RowTokenizer:
    """A fast tokenizer with fixed truncation. Build it with :func:`load_tokenizer`."""

    needed: tuple[str, ...] = ("pad_token", "cls_token", "sep_token")
    """Special tokens that it must have; with `cls_token`, it must begin every row."""
    limit: str = "data.max_length"
    """The field that ``max_length`` is."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, max_length: int, name: str) -> None:
        """UserError if the tokenizer lacks what an encoder's rows need; ``name`` is how messages call it."""
        self._check(tokenizer, max_length=max_length, name=name)
        self._tokenizer = tokenizer
        self._backend = tokenizer.backend_tokenizer
        # RoBERTa and its kin have one segment only: a 1 is outside of their embedding.
        self._has_segments = "token_type_ids" in tokenizer.model_input_names
        self.pad_token_id: int = self._padding(tokenizer)
        self.vocab_size = len(tokenizer)
        # Two bytes halve the shards, and nearly every encoder's vocabulary fits.
        self.dtype = np.dtype("<u2" if self.vocab_size <= 1 << 16 else "<i4")
        # Truncation is part of what a tokenizer saves of itself: off for the fingerprint and for `save`.
        self._backend.no_truncation()
        self._backend.no_padding()
        self.fingerprint = self._fingerprint()
        self.max_length = max_length
        self._backend.enable_truncation(max_length, strategy=TRUNCATION)
        first = self._backend.encode("a", add_special_tokens=True).ids[:1]
        if "cls_token" in self.needed and first != [tokenizer.cls_token_id]:
            raise UserError(
                f"{name} puts no {tokenizer.cls_token} before a text: classifiers read that position"
            )

    def encode(self, texts: Sequence[tuple[str, ...]]) -> list[Tokens]:
        """The rows of one or two texts each, special tokens included; the longer text is cut first."""
        inputs = [text if len(text) > 1 else text[0] for text in texts]
        encodings = self._backend.encode_batch_fast(inputs, add_special_tokens=True)
        rows = []
        for encoding in encodings:
            ids = encoding.ids
            segments = encoding.type_ids if self._has_segments else [0] * len(ids)
            rows.append(Tokens(np.array((ids, segments), self.dtype), bool(encoding.overflowing)))
        return rows

    def save(self, folder: Path) -> None:
        """A Hugging Face folder, without truncation and padding; its files give ``fingerprint``."""
        self._backend.no_truncation()
        self._tokenizer.save_pretrained(folder)
        self._backend.enable_truncation(self.max_length, strategy=TRUNCATION)

    def _check(self, tokenizer: PreTrainedTokenizerBase, *, max_length: int, name: str) -> None:
        if not tokenizer.is_fast:
            raise UserError(f"{name} is not a fast tokenizer: it needs a tokenizer.json")
        missing = [token for token in self.needed if getattr(tokenizer, token) is None]
        if missing:
            raise UserError(
                f"{name} has no {', '.join(missing)}: encoders need them; add them to the tokenizer"
            )
        if max_length > tokenizer.model_max_length:
            raise UserError(f"{self.limit} {max_length}: {name} allows at most {tokenizer.model_max_length}")

    def _padding(self, tokenizer: PreTrainedTokenizerBase) -> int:
        padding: int = tokenizer.pad_token_id
        return padding

    def _fingerprint(self) -> str:
        with tempfile.TemporaryDirectory() as name:
            self._tokenizer.save_pretrained(name)
            return folder_fingerprint(Path(name))


def folder_fingerprint(folder: Path) -> str:
    """sha256 over names and contents of the files of a saved tokenizer."""
    files = sorted(path for path in folder.iterdir() if path.is_file())
    lines = "".join(f"{path.name} {sha256_file(path)}\n" for path in files)
    return hashlib.sha256(lines.encode()).hexdigest()


def load_tokenizer(config: DataConfig) -> RowTokenizer:
    """The tokenizer that ``config`` names, or the generated corpus' own; UserError if it will not do."""
    if config.tokenizer:
        folder = locate(config.tokenizer, what="data.tokenizer", weights=False)
        name = f"data.tokenizer {config.tokenizer!r}"
        return RowTokenizer(read_tokenizer(folder, name), max_length=config.max_length, name=name)
    if config.source != "synthetic_nli":
        raise UserError(
            f"data.tokenizer is empty: data.source: {config.source} needs one (folder, hub name or pkg://PACKAGE/FOLDER)"
        )
    with tempfile.TemporaryDirectory() as temporary:
        build_tokenizer(Path(temporary))
        name = "the generated tokenizer"
        return RowTokenizer(read_tokenizer(temporary, name), max_length=config.max_length, name=name)


def read_tokenizer(folder: str, name: str) -> PreTrainedTokenizerBase:
    """The tokenizer in ``folder``, whatever it can do; UserError, which calls it ``name``, if there is none."""
    try:
        # Never the tokenizer's own code: a data folder is not a program.
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise UserError(f"{name}: no tokenizer can be loaded from {folder}: {error}") from error

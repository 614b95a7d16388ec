"""Rows of a test split, which has no labels: read and tokenised when they are predicted, never prepared."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from distill_dist.config.schema_data import DataConfig
from distill_dist.data.manifest import TOKENIZER_FOLDER
from distill_dist.data.rows import BadRow, RawRow
from distill_dist.data.shards import Example
from distill_dist.data.sources import open_sources
from distill_dist.data.tasks import TASKS, Layout, Task
from distill_dist.data.tokenization import RowTokenizer, read_tokenizer
from distill_dist.errors import UserError

# What holds a row's number: of the official files (QQP's is `id`), and of the hub's.
INDEX_COLUMNS = ("index", "id", "idx")
NO_LABEL = 0  # stands where a batch wants a class number; nothing reads it


@dataclass(frozen=True)
class UnlabelledRows:
    """Tokenised rows in the order of their numbers; a RowSource."""

    tokens: list[np.ndarray]  # [2, L] each: ids and types
    lengths: np.ndarray  # int64 [rows]

    @property
    def num_rows(self) -> int:
        """Rows of the split."""
        return len(self.tokens)

    def read(self, rows: np.ndarray) -> list[Example]:
        """The rows with these numbers, in this order."""
        pairs = ((row, self.tokens[row].astype(np.int64)) for row in rows.tolist())
        return [Example(row, ids_and_types[0], ids_and_types[1], NO_LABEL) for row, ids_and_types in pairs]


def read_unlabelled(config: DataConfig, place: str, *, name: str, tokenizer: RowTokenizer) -> UnlabelledRows:
    """The rows at ``place``: a file below `data.path`, or a split of the hub's configuration ``name``.

    Every row is there: one that cannot be read, or whose number is not its place, is a UserError. An empty text is
    none, because a test split wants an answer for it.
    """
    source = open_sources(
        replace(config, splits={"test": place}, name=name, source_column=""),
        Task(_layouts(config), ()),
    )["test"]
    _, rows = source.open()
    texts = [_texts(row, number, source.place) for number, row in enumerate(rows)]
    if not texts:
        raise UserError(f"{source.place} has no rows")
    tokens = [row.tokens for row in tokenizer.encode(texts)]
    return UnlabelledRows(tokens, np.array([each.shape[1] for each in tokens], dtype=np.int64))


def prepared_tokenizer(prepared: Path, *, max_length: int) -> RowTokenizer:
    """The tokenizer that the rows in ``prepared`` were cut with. UserError if it is not there."""
    name = f"the tokenizer of data.prepared {str(prepared)!r}"
    folder = str(prepared / TOKENIZER_FOLDER)
    return RowTokenizer(read_tokenizer(folder, name), max_length=max_length, name=name)


def _layouts(config: DataConfig) -> tuple[Layout, ...]:
    """The task's texts, and the row's number in the place of a label."""
    texts = [config.text_columns or layout.texts for layout in TASKS[config.task].layouts]
    return tuple(Layout(each, index) for each in dict.fromkeys(texts) for index in INDEX_COLUMNS)


def _texts(row: RawRow | BadRow, number: int, place: str) -> tuple[str, ...]:
    if isinstance(row, BadRow):
        raise UserError(f"{place}, line {row.line}: {row.reason}: a test split wants an answer for every row")
    if str(row.label).strip() != str(number):
        raise UserError(f"{place}, line {row.line}: the row of number {number} is called {row.label!r:.40}")
    return tuple(_text(value, row.line, place) for value in row.texts)


def _text(value: Any, line: int, place: str) -> str:
    try:
        text = value.decode("utf-8") if isinstance(value, bytes) else value
        if not isinstance(text, str):
            raise TypeError(f"{type(value).__name__} instead of a text")
        text.encode("utf-8")  # half a surrogate pair, which tokenizers refuse
    except (UnicodeError, TypeError) as error:
        raise UserError(f"{place}, line {line}: {error}") from error
    return text

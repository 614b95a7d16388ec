"""The same texts as a teacher with a tokenizer of its own reads them."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from distill_dist.config.methods import teacher_max_length
from distill_dist.config.schema_data import DataConfig
from distill_dist.data.tokenization import RowTokenizer, Tokens, load_tokenizer, read_tokenizer
from distill_dist.errors import UserError
from distill_dist.hub import locate


class TeacherTokenizer(RowTokenizer):
    """Without the demands that an encoder's rows make; build it with :func:`load_tokenizers`.

    Pairs are joined as the tokenizer joins them; where it puts nothing in between, as a byte-level BPE without a
    template does, ``separator`` becomes the beginning of the second text.
    """

    needed = ()
    limit = "data.teacher_max_length"

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, *, max_length: int, name: str, separator: str
    ) -> None:
        """UserError if the tokenizer is slow, allows fewer tokens, or has no token to pad with."""
        super().__init__(tokenizer, max_length=max_length, name=name)
        self._name = name
        joins_pairs = self._backend.num_special_tokens_to_add(True) > self._backend.num_special_tokens_to_add(
            False
        )
        self._separator = "" if joins_pairs else separator

    def encode(self, texts: Sequence[tuple[str, ...]]) -> list[Tokens]:
        """See RowTokenizer; UserError for a row of which no token is left."""
        rows = super().encode([(text[0], *(self._separator + more for more in text[1:])) for text in texts])
        for text, row in zip(texts, rows, strict=True):
            if not row.tokens.shape[1]:
                raise UserError(
                    f"{self._name} makes no token of {text[0]!r:.60}: give it an unknown token or a byte fallback"
                )
        return rows

    def _check(self, tokenizer: PreTrainedTokenizerBase, *, max_length: int, name: str) -> None:
        super()._check(tokenizer, max_length=max_length, name=name)
        if tokenizer.pad_token_id is None and tokenizer.eos_token_id is None:
            raise UserError(
                f"{name} has no pad_token and no eos_token: rows of a batch are padded with one of them; add one"
            )

    def _padding(self, tokenizer: PreTrainedTokenizerBase) -> int:
        padding = tokenizer.pad_token_id
        return int(tokenizer.eos_token_id if padding is None else padding)


@dataclass(frozen=True)
class Tokenizers:
    """The student's, and the teacher's where it has its own."""

    student: RowTokenizer
    teacher: TeacherTokenizer | None

    def encode(self, texts: Sequence[tuple[str, ...]]) -> list[tuple[Tokens, Tokens | None]]:
        """Every row's tokens for the student, and for the teacher where it has its own."""
        ours = self.student.encode(texts)
        theirs = [None] * len(ours) if self.teacher is None else self.teacher.encode(texts)
        return list(zip(ours, theirs, strict=True))


def load_tokenizers(config: DataConfig) -> Tokenizers:
    """What `data.tokenizer` and `data.teacher_tokenizer` name; UserError if one will not do."""
    student = load_tokenizer(config)
    if not config.teacher_tokenizer:
        return Tokenizers(student, None)
    folder = locate(config.teacher_tokenizer, what="data.teacher_tokenizer", weights=False)
    name = f"data.teacher_tokenizer {config.teacher_tokenizer!r}"
    tokenizer = read_tokenizer(folder, name)
    teacher = TeacherTokenizer(
        tokenizer, max_length=teacher_max_length(config), name=name, separator=config.teacher_separator
    )
    if tokenizer.pad_token_id is None:
        print(f"{name} has no pad_token: its {tokenizer.eos_token!r} pads, under the mask", file=sys.stderr)
    return Tokenizers(student, teacher)

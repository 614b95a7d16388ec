"""The generated corpus' own WordPiece tokenizer: every word of the grammar is one piece."""

from __future__ import annotations

import string
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import BertTokenizer

from distill_dist.data.synthetic_grammar import all_words

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def wordpiece_vocabulary() -> dict[str, int]:
    """Piece -> id: special tokens, words, then single letters, so that an unknown word is spelled out."""
    letters = string.ascii_lowercase + string.digits + ".,'"
    pieces = [*SPECIAL_TOKENS, *all_words(), *letters, *(f"##{letter}" for letter in letters)]
    return {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}


def build_tokenizer(folder: Path) -> None:
    """Write the tokenizer as a Hugging Face folder; the same bytes every time."""
    vocab = wordpiece_vocabulary()
    tokenizer = Tokenizer(models.WordPiece(vocab=vocab, unk_token="[UNK]", max_input_chars_per_word=100))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix="##")
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", vocab["[SEP]"]), ("[CLS]", vocab["[CLS]"]))
    BertTokenizer(tokenizer_object=tokenizer, model_max_length=128).save_pretrained(str(folder))

from __future__ import annotations

import numpy as np
import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from distill_dist.config.schema import DataConfig
from distill_dist.data.tokenization import RowTokenizer, folder_fingerprint, load_tokenizer
from distill_dist.errors import UserError


@pytest.fixture
def config(tiny_tokenizer):
    return DataConfig(source="tsv", tokenizer=str(tiny_tokenizer), max_length=8)


def test_rows_are_what_the_tokenizer_itself_gives(config, tiny_tokenizer):
    plain = AutoTokenizer.from_pretrained(tiny_tokenizer)
    texts = [("good film",), ("a b", "c"), ("a b c d e f", "g h"), ("a b", "c d e f g h"), ("b c d",)]
    rows = load_tokenizer(config).encode(texts)
    for text, row in zip(texts, rows, strict=True):
        expected = plain(*text, truncation="longest_first", max_length=8)
        assert row.tokens.tolist() == [expected["input_ids"], expected["token_type_ids"]]
    assert [row.truncated for row in rows] == [False, False, True, True, False]
    assert max(row.tokens.shape[1] for row in rows) == 8


def test_segments_are_zero_for_families_without_them(tiny_tokenizer):
    plain = AutoTokenizer.from_pretrained(tiny_tokenizer)
    plain.model_input_names = ["input_ids", "attention_mask"]
    (row,) = RowTokenizer(plain, max_length=8, name="t").encode([("a", "b")])
    assert row.tokens.tolist() == [[2, 8, 3, 9, 3], [0, 0, 0, 0, 0]]


def test_a_large_vocabulary_takes_four_bytes(tiny_tokenizer):
    plain = AutoTokenizer.from_pretrained(tiny_tokenizer)
    assert RowTokenizer(plain, max_length=8, name="t").dtype == np.uint16
    plain.add_tokens([f"w{number}" for number in range((1 << 16) + 1 - len(plain))])
    wide = RowTokenizer(plain, max_length=8, name="t")
    assert wide.dtype == np.int32
    assert wide.encode([(f"w{(1 << 16) - len(plain) + 16}",)])[0].tokens.max() < wide.vocab_size == 65537


def test_the_saved_folder_has_the_fingerprint_and_another_tokenizer_has_not(config, tmp_path):
    tokenizer = load_tokenizer(config)
    tokenizer.save(tmp_path / "saved")
    assert folder_fingerprint(tmp_path / "saved") == tokenizer.fingerprint
    again = load_tokenizer(DataConfig(source="tsv", tokenizer=str(tmp_path / "saved"), max_length=16))
    assert again.fingerprint == tokenizer.fingerprint
    other = AutoTokenizer.from_pretrained(config.tokenizer)
    other.add_tokens(["more"])
    assert RowTokenizer(other, max_length=8, name="t").fingerprint != tokenizer.fingerprint
    assert load_tokenizer(config).encode([("a " * 20,)])[0].truncated


@pytest.mark.parametrize("missing", ["pad_token", "cls_token", "sep_token"])
def test_a_missing_special_token_is_named(tiny_tokenizer, missing):
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    del special[missing]
    backend = AutoTokenizer.from_pretrained(tiny_tokenizer).backend_tokenizer
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **special)
    with pytest.raises(UserError, match=f"t has no {missing}"):
        RowTokenizer(tokenizer, max_length=8, name="t")


def test_a_tokenizer_that_leaves_cls_out_is_refused(tiny_tokenizer):
    plain = AutoTokenizer.from_pretrained(tiny_tokenizer)
    plain.cls_token = "[MASK]"
    with pytest.raises(UserError, match=r"puts no \[MASK\] before a text"):
        RowTokenizer(plain, max_length=8, name="t")


def test_more_tokens_than_the_tokenizer_allows(tiny_tokenizer):
    config = DataConfig(source="tsv", tokenizer=str(tiny_tokenizer), max_length=1024)
    with pytest.raises(UserError, match=r"max_length 1024: .* at most 512"):
        load_tokenizer(config)


def test_no_tokenizer_in_the_folder_or_none_named(tmp_path):
    with pytest.raises(UserError, match="no tokenizer can be loaded"):
        load_tokenizer(DataConfig(source="tsv", tokenizer=str(tmp_path)))
    with pytest.raises(UserError, match=r"data\.tokenizer is empty: data.source: tsv needs one"):
        load_tokenizer(DataConfig(source="tsv"))


def test_the_generated_corpus_brings_its_own():
    tokenizer = load_tokenizer(DataConfig(source="synthetic_nli"))
    (row,) = tokenizer.encode([("every dog runs", "some dog runs")])
    assert sorted(set(row.tokens[1].tolist())) == [0, 1]

"""Weights, configuration and tokenizer of an export."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_encoders import tiny_encoder
from transformers import AutoTokenizer, pipeline

from distill_dist.data.synthetic_nli import build_tokenizer
from distill_dist.durable import sha256_file
from distill_dist.errors import UserError
from distill_dist.export.model_files import WEIGHTS, copy_model
from distill_dist.models.tokenizer import VOCABULARIES, save_tokenizer


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A RoBERTa of 38 positions and one segment, with a tokenizer that knows two segments and 128 tokens."""
    model = tiny_encoder("roberta", dtype=torch.float32, type_vocab_size=1)
    model.resize_token_embeddings(200)
    model.save_pretrained(tmp_path / "source")
    build_tokenizer(tmp_path / "source")
    return tmp_path / "source"


def test_a_pair_longer_than_the_model_reads(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    copy_model(source, out, sha256=sha256_file(source / WEIGHTS))
    save_tokenizer(source, out, max_length=32, takes_token_types=False)
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert tokenizer.model_max_length == 32
    assert tokenizer.get_vocab() == AutoTokenizer.from_pretrained(source).get_vocab()
    assert not {"token_type_ids"} & tokenizer("a", "b").keys()
    pair = {"text": "anna " * 50, "text_pair": "bob " * 50}
    assert pipeline("text-classification", model=str(out))(pair, truncation=True)["score"] > 0
    with pytest.raises((IndexError, RuntimeError)):  # with the tokenizer as it was
        pipeline("text-classification", model=str(source))(pair, truncation=True)


def test_a_tokenizer_that_is_gone_is_not_made_up(source: Path, tmp_path: Path) -> None:
    for file in VOCABULARIES:
        (source / file).unlink(missing_ok=True)
    with pytest.raises(UserError, match=r"has no tokenizer\.json"):
        save_tokenizer(source, tmp_path / "out", max_length=32, takes_token_types=True)


def test_segments_stay_where_the_model_reads_them(source: Path, tmp_path: Path) -> None:
    save_tokenizer(source, tmp_path / "out", max_length=32, takes_token_types=True)
    assert AutoTokenizer.from_pretrained(tmp_path / "out")("a", "b")["token_type_ids"][-1] == 1
    text = (tmp_path / "out" / "tokenizer_config.json").read_text()
    assert "is_local" not in text
    assert str(tmp_path) not in text


def test_damaged_weights_are_refused(source: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(UserError, match=r"model\.safetensors does not match the checksum"):
        copy_model(source, tmp_path / "out", sha256="0" * 64)

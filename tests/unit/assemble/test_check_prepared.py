"""A run's `data` section against what its folder was prepared from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import BertTokenizerFast

from distill_dist.assemble.models import build_student, check_prepared
from distill_dist.config.load import load_config
from distill_dist.config.schema import RunConfig
from distill_dist.data.manifest import load_manifest
from distill_dist.data.prepare import prepare
from distill_dist.errors import UserError

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "bad", "film"]


def save_tokenizer(folder: Path, words: list[str]) -> Path:
    folder.mkdir()
    vocabulary = folder / "vocab.txt"
    vocabulary.write_text("\n".join(words), encoding="utf-8")
    BertTokenizerFast(str(vocabulary)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def arguments(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A prepared CSV of two text columns, as the command line names it."""
    folder = tmp_path_factory.mktemp("own")
    for split in ("train", "dev"):
        rows = "".join(f"good film,bad,{label}\n" for label in ("fine", "poor") * 4)
        (folder / f"{split}.csv").write_text(f"subject,body,kind\n{rows}", encoding="utf-8")
    found = [
        "method=finetune", f"run_dir={folder}/run", "data.source=csv", f"data.path={folder}",
        "data.splits={train: train.csv, dev: dev.csv}", "data.text_columns=[subject, body]",
        "data.label_column=kind", "data.labels=[fine, poor]", f"data.prepared={folder}/prepared",
        f"data.tokenizer={save_tokenizer(folder / 'tokenizer', WORDS)}",
    ]  # fmt: skip
    prepare(load_config(None, found, need="prepare").data, progress=False)
    return found


def check(arguments: list[str], *changes: str) -> RunConfig:
    config = load_config(None, [*arguments, *changes])
    check_prepared(config, load_manifest(Path(config.data.prepared)))
    return config


def test_what_was_prepared_is_accepted(arguments: list[str]) -> None:
    check(arguments)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("data.text_columns=[body]", "data.text_columns"),
        ("data.label_column=mood", "data.label_column"),
        ("data.source=jsonl", "data.source"),
        ("data.max_length=64", "data.max_length"),
        ("data.labels=[poor, fine]", "data.labels"),
        ("data.splits={test: dev.csv}", "data.splits"),
    ],
)
def test_what_was_prepared_otherwise_is_named(arguments: list[str], change: str, named: str) -> None:
    with pytest.raises(UserError, match=rf"^[a-z_. ]*{named}.*prepare again"):
        check(arguments, change)


def test_another_tokenizer_is_refused_for_the_data_and_for_the_student(
    arguments: list[str], tmp_path: Path
) -> None:
    other = save_tokenizer(tmp_path / "other", [*WORDS[:5], "film", "good", "bad"])
    with pytest.raises(UserError, match=r"data\.tokenizer=.* has another vocabulary"):
        check(arguments, f"data.tokenizer={other}")
    config: Any = check(arguments, f"student.path={other}")
    with pytest.raises(UserError, match=r"student\.path=.* has another vocabulary"):
        build_student(config, load_manifest(Path(config.data.prepared)))


def test_an_old_tokenizer_is_compared_too(arguments: list[str], tmp_path: Path) -> None:
    other = save_tokenizer(tmp_path / "other", [*WORDS[:5], "film", "good", "bad"])
    (other / "tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"data\.tokenizer=.* has another vocabulary"):
        check(arguments, f"data.tokenizer={other}")


def test_another_generated_corpus_is_refused(tmp_path: Path) -> None:
    rows = ["data.synthetic.train_rows=20", "data.synthetic.dev_rows=10", "data.synthetic.max_steps=1"]
    corpus = ["data.source=synthetic_nli", f"data.prepared={tmp_path}/prepared", *rows]
    prepare(load_config(None, corpus, need="prepare").data, progress=False)
    run = [*corpus, "method=finetune", f"run_dir={tmp_path}/run"]
    check(run)
    with pytest.raises(UserError, match=r"data\.synthetic=.*'label_noise': 0\.5.*prepare again"):
        check(run, "data.synthetic.label_noise=0.5")


def test_a_source_column_that_was_prepared_is_accepted_and_no_other(
    arguments: list[str], tmp_path: Path
) -> None:
    rows = [*arguments, f"data.prepared={tmp_path}/prepared", "data.source_column=origin"]
    for split in ("train", "dev"):
        text = "".join(f"good film,bad,{label},{label}s\n" for label in ("fine", "poor") * 4)
        (tmp_path / f"{split}.csv").write_text(f"subject,body,kind,origin\n{text}", encoding="utf-8")
    rows.append(f"data.path={tmp_path}")
    prepare(load_config(None, rows, need="prepare").data, progress=False)
    check(rows)
    with pytest.raises(UserError, match=r"data\.source_column"):
        check(rows, 'data.source_column=""')

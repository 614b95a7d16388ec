"""From a model and unlabelled rows to the server's zip, without a prepared test split."""

from __future__ import annotations

import zipfile
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from data.conftest import WORDS, build_tiny_tokenizer
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from distill_dist.assemble.submission_of_run import write_submission_of
from distill_dist.config.load import load_config
from distill_dist.config.schema import RunConfig
from distill_dist.data.manifest import load_manifest
from distill_dist.data.prepare import prepare
from distill_dist.errors import UserError
from distill_dist.evaluation.submission import check_submission
from distill_dist.models.build import random_student

ROWS = {"MNLI-m": 9796, "MNLI-mm": 9847, "AX": 1104}
NAMES = ("entailment", "neutral", "contradiction")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer, a few MNLI rows with labels, test rows of two of the three files, and a model."""
    root = tmp_path_factory.mktemp("glue")
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    build_tiny_tokenizer(special).save_pretrained(root / "tokenizer")
    labelled = "".join(f"a\tb\t{NAMES[row % 3]}\n" for row in range(9))
    for name in ("train.tsv", "dev.tsv"):
        (root / name).write_text("sentence1\tsentence2\tgold_label\n" + labelled)
    for file, rows in (("test_matched.tsv", ROWS["MNLI-m"]), ("diagnostic.tsv", ROWS["AX"])):
        (root / file).write_text("\n".join(["index\tsentence1\tsentence2", *lines_of(rows)]) + "\n")
    prepare(config_of(root).data, progress=False)
    manifest = load_manifest(root / "prepared")
    with torch.random.fork_rng():
        torch.manual_seed(2)
        shape = {"hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 8, "initializer_range": 0.3}
        random_student(
            {"model_type": "bert", "num_hidden_layers": 1, **shape},
            vocab_size=manifest.vocab_size,
            pad_token_id=manifest.pad_token_id,
            labels=NAMES,
        ).save_pretrained(root / "model")
    return root


def lines_of(rows: int) -> list[str]:
    words = np.random.default_rng(rows).choice(WORDS, (rows, 4))
    return [f"{row}\t{a} {b}\t{c} {d}" for row, (a, b, c, d) in enumerate(words)]


def config_of(root: Path) -> RunConfig:
    arguments = [
        "data.source=tsv", "data.task=mnli", f"data.path={root}", f"data.tokenizer={root}/tokenizer",
        "data.splits={train: train.tsv, dev: dev.tsv}", f"data.prepared={root}/prepared", "data.max_length=16",
        "cluster.device=cpu",
    ]  # fmt: skip
    return load_config(None, arguments, need="prepare")


def test_every_row_of_the_test_files_gets_the_models_label(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "glue.zip"
    said = write_submission_of(config_of(folder), student=f"{folder}/model", path=path, places={})
    assert said["written"] == {"MNLI-m.tsv": ROWS["MNLI-m"], "AX.tsv": ROWS["AX"]}
    assert list(said["left_out"]) == ["MNLI-mm.tsv"]
    assert "there is no file" in said["left_out"]["MNLI-mm.tsv"]
    assert "MNLI-mm.tsv" in said["missing"]
    assert "MNLI-m.tsv" not in said["missing"]
    assert check_submission(path) == []
    with zipfile.ZipFile(path) as file:
        lines = file.read("AX.tsv").decode().splitlines()
    found = [line.split("\t")[1] for line in lines[1:]]
    assert len(Counter(found)) >= 2, "a model of one answer proves nothing"
    # against a plain call of the model, row by row
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    model = AutoModelForSequenceClassification.from_pretrained(folder / "model").eval()
    for number in range(0, ROWS["AX"], 100):
        _, first, second = lines_of(ROWS["AX"])[number].split("\t")
        with torch.no_grad():
            logits_C = model(**tokenizer(first, second, return_tensors="pt")).logits[0]
        assert NAMES[int(logits_C.argmax())] == found[number], number


def test_rows_elsewhere_are_named(folder: Path, tmp_path: Path) -> None:
    path, config = tmp_path / "glue.zip", config_of(folder)
    other = tmp_path / "mm.tsv"
    other.write_text("\n".join(["idx\tsentence1\tsentence2", *lines_of(ROWS["MNLI-mm"])]) + "\n")
    said = write_submission_of(
        config,
        student=f"{folder}/model",
        path=path,
        places={"MNLI-mm": str(other), "MNLI-m": "test_matched.tsv"},
    )
    assert said["written"].keys() == {"MNLI-m.tsv", "MNLI-mm.tsv", "AX.tsv"}
    with pytest.raises(UserError, match="there is no file"):
        write_submission_of(config, student="x", path=path, places={"MNLI-m": "no.tsv"})
    with pytest.raises(UserError, match="--test QNLI: a model of mnli fills MNLI-m, MNLI-mm, AX"):
        write_submission_of(config, student="x", path=path, places={"QNLI": "test_matched.tsv"})


def test_part_of_a_test_split_is_refused(folder: Path, tmp_path: Path) -> None:
    path, few = tmp_path / "glue.zip", tmp_path / "few.tsv"
    few.write_text("\n".join(["index\tsentence1\tsentence2", *lines_of(5)]) + "\n")
    with pytest.raises(UserError, match=r"MNLI-m\.tsv has 5 rows, the server's test split 9796"):
        write_submission_of(
            config_of(folder), student=f"{folder}/model", path=path, places={"MNLI-m": str(few)}
        )
    assert not path.exists()


def test_without_test_rows_it_is_said_where_they_were_looked_for(folder: Path, tmp_path: Path) -> None:
    config = config_of(folder)
    empty = replace(config, data=replace(config.data, path=str(tmp_path)))
    with pytest.raises(
        UserError, match=r"(?s)no test rows were found.*MNLI-m\.tsv: .*test_matched\.tsv.*AX\.tsv"
    ):
        write_submission_of(empty, student="x", path=tmp_path / "glue.zip", places={})
    synthetic = replace(config, data=replace(config.data, source="synthetic_nli"))
    with pytest.raises(UserError, match="the GLUE server has no task 'synthetic_nli'"):
        write_submission_of(synthetic, student="x", path=tmp_path / "glue.zip", places={})

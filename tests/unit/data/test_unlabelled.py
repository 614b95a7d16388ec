"""Test rows of the official files and of other layouts: all of them, in order, or a message."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from distill_dist.config.schema import DataConfig
from distill_dist.data.tokenization import RowTokenizer, load_tokenizer
from distill_dist.data.unlabelled import UnlabelledRows, read_unlabelled
from distill_dist.errors import UserError

OFFICIAL = {
    "sst2": "index\tsentence\n0\tgood film\n1\ta\n",
    "qqp": "id\tquestion1\tquestion2\n0\tgood\tfilm\n1\ta\t\n",
    "mnli": "index\tpromptID\tsentence1\tsentence2\n0\t9\tgood\tfilm\n1\t8\ta\t\n",
    "qnli": "index\tquestion\tsentence\n0\tgood\tfilm\n1\ta\t\n",
}


@pytest.fixture
def tokenizer(tiny_tokenizer: Path) -> RowTokenizer:
    return load_tokenizer(DataConfig(source="tsv", path="x", tokenizer=str(tiny_tokenizer), max_length=8))


def read(
    folder: Path, tokenizer: RowTokenizer, content: str, task: str = "sst2", source: str = "tsv"
) -> UnlabelledRows:
    (folder / "test").write_text(content, encoding="utf-8")
    config = DataConfig(source=source, task=task, path=str(folder))  # type: ignore[arg-type]
    return read_unlabelled(config, "test", name="", tokenizer=tokenizer)


@pytest.mark.parametrize("task", OFFICIAL)
def test_official_files(tmp_path: Path, tokenizer: RowTokenizer, task: str) -> None:
    """Also a row with an empty text, which training would call bad: the server wants an answer for it."""
    found = read(tmp_path, tokenizer, OFFICIAL[task], task)
    pair = task != "sst2"
    first, second = found.read(np.array([0, 1]))
    assert first.input_ids.tolist() == ([2, 5, 3, 7, 3] if pair else [2, 5, 7, 3])
    assert first.token_type_ids.tolist() == ([0, 0, 0, 1, 1] if pair else [0] * 4)
    assert second.input_ids.tolist() == ([2, 8, 3, 3] if pair else [2, 8, 3])
    assert found.num_rows == 2
    assert found.lengths.tolist() == [len(first.input_ids), len(second.input_ids)]
    assert found.read(np.array([1]))[0].row == 1


def test_other_layouts(tmp_path: Path, tokenizer: RowTokenizer) -> None:
    lines = [json.dumps({"idx": row, "sentence": "a b"}) for row in range(3)]
    assert read(tmp_path, tokenizer, "\n".join(lines), source="jsonl").num_rows == 3
    # the hub's: a label column of -1 besides
    table = {"sentence": ["a b", "c"], "label": [-1, -1], "idx": [0, 1]}
    pq.write_table(pa.table(table), tmp_path / "test.parquet")
    config = DataConfig(source="parquet", task="sst2", path=str(tmp_path))
    assert read_unlabelled(config, "test.parquet", name="", tokenizer=tokenizer).lengths.tolist() == [4, 3]


def test_the_hubs_layout(tmp_path: Path, tokenizer: RowTokenizer) -> None:
    """A folder in it stands for the hub: splits are found by their names, and the label of -1 is not looked at."""
    for split, sentences in (("train", ["a"]), ("test", ["a b", "", "c"])):
        rows = [{"sentence": text, "label": -1, "idx": row} for row, text in enumerate(sentences)]
        (tmp_path / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    config = DataConfig(source="hub", task="sst2", path=str(tmp_path))
    found = read_unlabelled(config, "test", name="", tokenizer=tokenizer)
    assert found.lengths.tolist() == [4, 2, 3]


def test_long_rows_are_cut_as_prepared_ones(tmp_path: Path, tokenizer: RowTokenizer) -> None:
    assert read(tmp_path, tokenizer, "index\tsentence\n0\ta b c d e f g h\n").lengths.tolist() == [8]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("index\tsentence\n1\ta\n0\tb\n", r"line 2: the row of number 0 is called '1'"),
        ("index\tsentence\n0\ta\n1\tb\textra\n", r"line 3: 3 fields where the header has 2"),
        ("sentence\na\n", r"missing column: needs 'sentence', 'index' or"),
        ("index\tsentence\n", r"test has no rows"),
    ],
)
def test_no_row_is_left_out(tmp_path: Path, tokenizer: RowTokenizer, content: str, expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        read(tmp_path, tokenizer, content)


def test_broken_text_is_named(tmp_path: Path, tokenizer: RowTokenizer) -> None:
    lines = '{"idx": 0, "sentence": "a"}\n{"idx": 1, "sentence": null}\n'
    with pytest.raises(UserError, match="test, line 2: NoneType instead of a text"):
        read(tmp_path, tokenizer, lines, source="jsonl")

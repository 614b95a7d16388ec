"""Rows drawn out of train: how many, that equal texts stay together, that nothing is in two places."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from distill_dist.config.schema_data import DataConfig
from distill_dist.data.hold_out import LEFT_OUT, TRAIN, draw_rows
from distill_dist.data.prepare import prepare
from distill_dist.data.shards import open_split
from distill_dist.errors import UserError


@pytest.mark.parametrize("seed", range(5))
def test_counts_are_exact_and_equal_rows_stay_together(seed):
    keys = np.random.default_rng(seed).integers(0, 300, size=500, dtype=np.uint64)  # many twice and thrice
    goes = draw_rows(keys, {"tune": 60, "held_out": 101}, keep=200, place="train")
    assert [(goes == number).sum() for number in (1, 2)] == [60, 101]
    assert 190 < (goes == TRAIN).sum() <= 200
    assert (goes == LEFT_OUT).sum() == 500 - 161 - (goes == TRAIN).sum()
    for key in np.unique(keys):
        assert len(set(goes[keys == key].tolist())) == 1


def test_a_draw_is_of_the_keys_and_not_of_the_order_of_rows():
    keys = np.random.default_rng(0).integers(0, 2**63, size=100, dtype=np.uint64)
    goes = draw_rows(keys, {"tune": 30}, keep=0, place="train")
    np.testing.assert_array_equal(draw_rows(keys[::-1], {"tune": 30}, keep=0, place="train"), goes[::-1])
    assert 0 < (goes[:50] == 1).sum() < 30  # not the first ones


def test_all_rows_held_out_or_pairs_alone_are_refused():
    keys = np.arange(10, dtype=np.uint64)
    with pytest.raises(UserError, match=r"takes 10 rows, and train.tsv has 10"):
        draw_rows(keys, {"tune": 4, "held_out": 6}, keep=0, place="train.tsv")
    with pytest.raises(UserError, match=r"hold_out.tune=3: equal texts stay together"):
        draw_rows(np.repeat(keys, 2), {"tune": 3}, keep=0, place="train.tsv")


def test_a_large_group_does_not_push_the_others_out():
    keys = np.array([1] * 20 + [2, 3, 4], dtype=np.uint64)
    assert (draw_rows(keys, {}, keep=2, place="train") == TRAIN).tolist() == [False] * 20 + [
        True,
        True,
        False,
    ]
    with pytest.raises(UserError, match="max_rows=2: equal texts stay together"):
        draw_rows(keys[:20], {}, keep=2, place="train")
    assert len(draw_rows(keys[:0], {}, keep=2, place="train")) == 0


@pytest.fixture
def config(tmp_path: Path, tiny_tokenizer: Path) -> DataConfig:
    words = ["good", "bad", "film", "a", "b", "c", "d", "e", "f", "g", "h"]
    texts = [f"{one} {other}" for one in words for other in words]
    rows = [f"{text}\t{number % 2}" for number, text in enumerate(texts)] + ["good good\t0"]
    (tmp_path / "train.tsv").write_text("sentence\tlabel\n" + "\n".join(rows) + "\n")
    return DataConfig(
        source="tsv", task="sst2", path=str(tmp_path), splits={"train": "train.tsv"}, prepared=str(tmp_path / "p"),
        hold_out={"dev": 20, "held_out": 31}, max_rows=50, tokenizer=str(tiny_tokenizer), max_length=8,
    )  # fmt: skip


def rows_of(config: DataConfig, split: str) -> list[tuple[int, ...]]:
    found = open_split(Path(config.prepared), split)
    return [tuple(row.input_ids.tolist()) for row in found.read(np.arange(found.num_rows))]


def test_prepared_splits_share_no_text(config):
    found = prepare(config, progress=False)
    assert found["rows"]["dev"] == 20
    assert found["rows"]["held_out"] == 31
    assert 49 <= found["rows"]["train"] <= 50
    parts = [set(rows_of(config, split)) for split in ("train", "dev", "held_out")]
    assert len(set.union(*parts)) == sum(map(len, parts))
    assert prepare(config, progress=False)["reused"]


def test_another_draw_is_another_folder(config, tmp_path):
    prepare(config, progress=False)
    for name, value in (("hold_out", {"dev": 21, "held_out": 31}), ("max_rows", 49), ("draw_seed", 1)):
        with pytest.raises(UserError, match="was prepared from something else"):
            prepare(dataclasses.replace(config, **{name: value}), progress=False)
    other = dataclasses.replace(config, draw_seed=1, prepared=str(tmp_path / "q"))
    prepare(other, progress=False)
    assert rows_of(config, "dev") != rows_of(other, "dev")


def test_bad_rows_are_counted_in_train_and_never_drawn(config):
    path = Path(config.path, "train.tsv")
    path.write_text(path.read_text() + "no label\t\n" * 7)
    with pytest.raises(UserError, match="missing label"):
        prepare(config, progress=False)
    with pytest.raises(
        UserError, match=r"takes 200 rows, and .*train.tsv \(7 rows are bad\) has 122 good ones"
    ):
        prepare(dataclasses.replace(config, hold_out={"dev": 200}), progress=False)
    with pytest.raises(UserError, match=r"unknown label|missing label"):
        prepare(dataclasses.replace(config, labels=("yes", "no")), progress=False)
    found = prepare(dataclasses.replace(config, on_bad_row="skip", max_rows=0), progress=False)
    assert found["bad_rows"] == 7
    assert found["rows"] == {"train": 122 - 51, "dev": 20, "held_out": 31}

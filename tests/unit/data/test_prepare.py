from __future__ import annotations

import dataclasses
import errno
import json
import os
import subprocess
import sys

import datasets
import numpy as np
import pyarrow.csv
import pyarrow.parquet
import pytest
from transformers import AutoTokenizer

import distill_dist.data.prepare as prepare_module
from distill_dist.config.schema_data import DataConfig, SyntheticConfig
from distill_dist.data.manifest import MANIFEST, load_manifest, manifest_hash
from distill_dist.data.prepare import prepare
from distill_dist.data.shards import open_split
from distill_dist.data.tokenization import RowTokenizer, folder_fingerprint
from distill_dist.errors import UserError

TRAIN = "sentence\tlabel\ngood film\t1\na b c d e f g h a b\t0\nbad film\t0\n"
DEV = "sentence\tlabel\nfilm\t1\n"


@pytest.fixture
def config(tmp_path, tiny_tokenizer):
    folder = tmp_path / "input"
    folder.mkdir()
    (folder / "train.tsv").write_text(TRAIN)
    (folder / "dev.tsv").write_text(DEV)
    return DataConfig(
        source="tsv",
        task="sst2",
        path=str(folder),
        splits={"train": "train.tsv", "dev": "dev.tsv"},
        tokenizer=str(tiny_tokenizer),
        max_length=8,
        rows_per_shard=2,
        prepared=str(tmp_path / "out" / "sst2"),
    )


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out" / "sst2"


def run(config, **kwargs):
    return prepare(config, progress=False, **kwargs)


def change(config, **kwargs):
    return dataclasses.replace(config, **kwargs)


def never(*args, **kwargs):
    raise AssertionError("tokenised again")


def test_what_is_written(config, out, tiny_tokenizer):
    summary = run(config)
    assert summary["rows"] == {"train": 3, "dev": 1}
    assert (summary["tokens"], summary["truncated"], summary["bad_rows"]) == (4 + 8 + 4 + 3, 1, 0)
    assert summary["reused"] is False
    manifest = load_manifest(out)
    assert manifest.labels == ("negative", "positive")
    assert manifest.splits["train"].labels == {"negative": 2, "positive": 1}
    assert [shard.file for shard in manifest.splits["train"].shards] == [
        "train/shard-000000.tar",
        "train/shard-000001.tar",
    ]
    assert manifest.tokenizer == folder_fingerprint(out / "tokenizer")
    assert (manifest.pad_token_id, manifest.vocab_size) == (0, 16)
    assert not (out / "bad_rows.jsonl").exists()
    (first,) = open_split(out, "train").read(np.array([0]))
    plain = AutoTokenizer.from_pretrained(out / "tokenizer")
    assert first.input_ids.tolist() == plain("good film")["input_ids"]
    assert first.label == 1
    assert [path.name for path in out.parent.iterdir()] == ["sst2"]


def test_the_bar_and_the_notice_go_to_stderr(config, capsys):
    prepare(config)
    prepare(config)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "prepare train: 100%" in captured.err
    assert "already prepared from the same input: nothing to do" in captured.err


def test_the_same_request_does_nothing(config, out, monkeypatch):
    first = run(config)
    before = (out / MANIFEST).stat()
    monkeypatch.setattr(RowTokenizer, "encode", never)
    second = run(config)
    after = (out / MANIFEST).stat()
    assert second["reused"] is True
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)
    assert second["rows"] == first["rows"]


def test_input_that_was_moved_is_the_same_input(config, tmp_path):
    run(config)
    os.rename(config.path, tmp_path / "elsewhere")
    assert run(change(config, path=str(tmp_path / "elsewhere")))["reused"] is True


@pytest.mark.parametrize(
    ("changes", "lines"),
    [
        ({"max_length": 16}, ["max_length: 8 -> 16"]),
        (
            {"rows_per_shard": 3, "on_bad_row": "skip"},
            ["rows_per_shard: 2 -> 3", "on_bad_row: error -> skip"],
        ),
        ({"labels": ("no", "yes")}, ["labels: ['negative', 'positive'] -> ['no', 'yes']"]),
        ({"splits": {"train": "train.tsv"}}, ["splits.dev.file: dev.tsv -> (none)"]),
    ],
)
def test_another_request_says_what_changed_and_keeps_the_folder(config, out, changes, lines):
    run(config)
    before = (out / MANIFEST).read_bytes()
    with pytest.raises(UserError, match="prepared from something else") as caught:
        run(change(config, **changes))
    for line in lines:
        assert line in str(caught.value)
    assert "--replace" in str(caught.value)
    assert (out / MANIFEST).read_bytes() == before


def test_other_input_or_another_tokenizer_is_another_request(config, tmp_path):
    run(config)
    (tmp_path / "input" / "dev.tsv").write_text(DEV + "bad\t0\n")
    with pytest.raises(UserError, match=r"splits\.dev\.sha256: \w+ -> \w+") as caught:
        run(config)
    assert "train" not in str(caught.value)
    (tmp_path / "input" / "dev.tsv").write_text(DEV)
    tokenizer = AutoTokenizer.from_pretrained(config.tokenizer)
    tokenizer.add_tokens(["more"])
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    with pytest.raises(UserError, match=r"tokenizer: \w+ -> \w+"):
        run(change(config, tokenizer=str(tmp_path / "tokenizer")))


def test_replace_overwrites(config, out):
    run(config)
    assert run(change(config, max_length=16), replace=True)["truncated"] == 0
    assert load_manifest(out).max_length == 16


def test_a_damaged_folder_is_prepared_again(config, out, capsys):
    run(config)
    whole = manifest_hash(load_manifest(out))
    shard = out / "train" / "shard-000001.tar"
    shard.write_bytes(bytes(len(shard.read_bytes())))
    assert run(config)["reused"] is False
    assert "shard-000001.tar is missing or damaged" in capsys.readouterr().err
    assert manifest_hash(load_manifest(out)) == whole
    assert run(config)["reused"] is True


def test_a_folder_of_somebody_else_is_not_touched(config, out):
    out.mkdir(parents=True)
    (out / "thesis.txt").write_text("years of work")
    for replace in (False, True):
        with pytest.raises(UserError, match="not made by prepare"):
            run(config, replace=replace)
    assert (out / "thesis.txt").exists()
    (out / "thesis.txt").unlink()
    run(config)  # an empty folder is nobody's


@pytest.mark.parametrize("content", ['{"name": "my app", "icons": []}', "{"])
def test_a_folder_with_a_manifest_of_somebody_else_is_not_touched(config, out, content):
    out.mkdir(parents=True)
    (out / MANIFEST).write_text(content)
    for replace in (False, True):
        with pytest.raises(UserError, match="name another folder"):
            run(config, replace=replace)
    assert (out / MANIFEST).read_text() == content


@pytest.mark.parametrize("name", ["thesis.txt", "train/thesis.txt", "dev/notes/a"])
def test_what_somebody_put_into_a_prepared_folder_is_not_replaced(config, out, name):
    run(config)
    (out / name).parent.mkdir(exist_ok=True)
    (out / name).write_text("years of work")
    assert run(config)["reused"] is True  # nothing is deleted
    with pytest.raises(UserError, match=rf"it holds {name.removesuffix('/a')}: move that away"):
        run(change(config, max_length=16), replace=True)
    assert (out / name).exists()


def test_a_prepared_folder_with_bad_rows_and_more_splits_can_be_replaced(config, out, tmp_path):
    (tmp_path / "input" / "train.tsv").write_text(BAD)
    run(change(config, on_bad_row="skip", splits={**config.splits, "dev-2": "dev.tsv"}))
    (out / "dev" / "shard-000000.tar").unlink()
    assert run(change(config, on_bad_row="skip"), replace=True)["rows"] == {"train": 2, "dev": 1}
    assert not (out / "dev-2").exists()


def test_files_that_cannot_be_read_or_written_are_one_message(config, out, tmp_path, monkeypatch):
    below_a_file = tmp_path / "input" / "dev.tsv" / "p"
    with pytest.raises(UserError, match=r"cannot be written: (Not a directory|File exists) .*dev\.tsv"):
        run(change(config, prepared=str(below_a_file)))
    long = "x" * 256
    for changes in ({"prepared": f"{tmp_path}/{long}"}, {"splits": {"train": long}}, {"path": long}):
        with pytest.raises(UserError, match=r"prepare failed at .*xxx.*: File name too long"):
            run(change(config, **changes))

    def refused(path):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr("distill_dist.data.sources.sha256_file", refused)
    with pytest.raises(UserError, match=r"prepare failed at .*train\.tsv: Permission denied"):
        run(config)
    assert not out.exists()


def test_a_label_of_thousands_of_digits_is_a_bad_row(config, tmp_path):
    (tmp_path / "input" / "train.tsv").write_text(f"sentence\tlabel\nfilm\t{'1' * 5000}\n")
    with pytest.raises(UserError, match=r"train\.tsv:2: unknown label"):
        run(config)


def test_what_a_killed_run_left_is_removed_and_what_a_living_one_writes_is_not(config, out):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    left, writing, other = (
        out.parent / name for name in (f".sst2.{dead.pid}.tmp", f".sst2.{os.getppid()}.tmp", ".sst2b.1.tmp")
    )
    for folder in (left, writing, other):
        (folder / "train").mkdir(parents=True)
    run(config)
    assert [folder.exists() for folder in (left, writing, other)] == [False, True, True]


BAD = "sentence\tlabel\ngood\t1\n\t0\nfilm\t7\nonly one\nfilm\tpositive\nfilm\t-1\nfilm\t9\n"


def test_bad_rows_are_an_error_with_the_first_place_and_the_count_of_all_splits(config, out, tmp_path):
    (tmp_path / "input" / "train.tsv").write_text(BAD)
    (tmp_path / "input" / "dev.tsv").write_text(DEV + "x\t\n")
    with pytest.raises(UserError) as caught:
        run(config)
    message = str(caught.value)
    assert message.startswith(f"{tmp_path}/input/train.tsv:3: text 1 is empty\n6 bad rows in all: ")
    counted = ["2 unknown label", "1 empty text", "1 wrong number of fields", "2 missing label"]
    assert all(count in message for count in counted)
    assert "Unknown labels: 1 '7', 1 '9'. Add those that are classes to data.labels" in message
    assert "data.on_bad_row=skip" in message
    assert list(out.parent.iterdir()) == []


def test_bad_rows_can_be_skipped_and_are_listed(config, out, tmp_path, capsys):
    (tmp_path / "input" / "train.tsv").write_text(BAD)
    summary = run(change(config, on_bad_row="skip"))
    assert (summary["rows"]["train"], summary["bad_rows"]) == (2, 5)
    assert load_manifest(out).splits["train"].bad_rows == {
        "unknown label": 2,
        "empty text": 1,
        "wrong number of fields": 1,
        "missing label": 1,
    }
    listed = [json.loads(line) for line in (out / "bad_rows.jsonl").read_text().splitlines()]
    assert [record["line"] for record in listed] == [3, 4, 5, 7, 8]
    assert listed[0]["split"] == "train"
    assert listed[0]["kind"] == "empty text"
    assert listed[0]["file"].endswith("train.tsv")
    assert open_split(out, "train").labels.tolist() == [1, 1]
    said = capsys.readouterr().err
    assert "left out 5 bad rows, listed in bad_rows.jsonl: 2 unknown label, 1 " in said
    assert "Add those that are classes to data.labels" in said


def test_nothing_is_said_of_rows_that_are_good(config, capsys):
    run(change(config, on_bad_row="skip"))
    assert "left out" not in capsys.readouterr().err


def test_after_a_bad_row_the_rest_is_only_counted(config, tmp_path, monkeypatch):
    (tmp_path / "input" / "train.tsv").write_text("sentence\tlabel\nx\t9\n" + "film\t1\n" * 10)
    monkeypatch.setattr(prepare_module, "BATCH_ROWS", 4)
    monkeypatch.setattr(RowTokenizer, "encode", never)
    with pytest.raises(UserError, match="1 bad rows in all"):
        run(config)


@pytest.mark.parametrize("content", ["sentence\tlabel\n", "sentence\tlabel\n\t1\n"])
def test_a_split_without_rows_is_an_error(config, out, tmp_path, content):
    (tmp_path / "input" / "dev.tsv").write_text(content)
    with pytest.raises(UserError, match=r"dev.tsv has no rows"):
        run(change(config, on_bad_row="skip"))
    assert not out.exists()


def test_a_file_that_is_not_there_is_named_with_those_there(config):
    with pytest.raises(UserError, match=r"no file .*input/test.tsv \(its folder has dev.tsv, train.tsv\)"):
        run(change(config, splits={"test": "test.tsv"}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prepared": ""}, "data.prepared is empty"),
        ({"splits": {}}, "splits is empty"),
        ({"splits": {"../x": "train.tsv"}}, "'../x' must be letters"),
        ({"splits": {"tokenizer": "train.tsv"}}, "'tokenizer' is taken"),
    ],
)
def test_what_is_missing_is_named(config, changes, message):
    with pytest.raises(UserError, match=message):
        run(change(config, **changes))


@pytest.mark.parametrize("source", ["csv", "jsonl", "parquet", "hub"])
def test_every_source_gives_the_same_rows(config, out, tmp_path, source, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    run(config)
    expected = open_split(out, "train").read(np.arange(3))
    folder = tmp_path / source
    folder.mkdir()
    rows = [line.split("\t") for line in TRAIN.splitlines()[1:]]
    texts, labels = [row[0] for row in rows], [int(row[1]) for row in rows]
    if source == "jsonl":
        lines = [json.dumps({"sentence": t, "label": l}) for t, l in zip(texts, labels, strict=True)]
        (folder / "train.jsonl").write_text("\n".join(lines))
    else:
        table = pyarrow.table({"sentence": texts, "label": labels})
        if source == "csv":
            pyarrow.csv.write_csv(table, folder / "train.csv")
        else:
            pyarrow.parquet.write_table(table, folder / "train.parquet")
    name = "train" if source == "hub" else f"train.{source}"
    run(
        change(config, source=source, path=str(folder), splits={"train": name}, prepared=str(tmp_path / "o")),
    )
    found = open_split(tmp_path / "o", "train").read(np.arange(3))
    for one, other in zip(found, expected, strict=True):
        assert one.label == other.label
        np.testing.assert_array_equal(one.input_ids, other.input_ids)


def test_the_generated_corpus_keeps_difficulty_and_clean_labels(tmp_path):
    synthetic = SyntheticConfig(train_rows=300, dev_rows=50, label_noise=0.3, max_steps=2)
    config = DataConfig(source="synthetic_nli", prepared=str(tmp_path / "p"), synthetic=synthetic)
    assert run(config)["rows"] == {"train": 300, "dev": 50}
    train, dev = open_split(tmp_path / "p", "train"), open_split(tmp_path / "p", "dev")
    noisy = float(np.mean(train.labels != train.clean_labels))
    assert abs(noisy - 0.3) < 0.11  # 4 standard deviations of 300 draws: 4·sqrt(0.3·0.7/300)
    np.testing.assert_array_equal(dev.labels, dev.clean_labels)
    assert set(train.difficulties.tolist()) == {1, 2}
    assert run(config)["reused"] is True
    other = change(config, synthetic=dataclasses.replace(synthetic, seed=1))
    with pytest.raises(UserError, match=r"splits\.train\.generator\.seed: 0 -> 1"):
        run(other)


def test_one_prepare_at_a_time(config, out):
    """The slower one would put its rows in the place of the other's."""
    code = "import sys, time; from pathlib import Path; from distill_dist.durable import hold_lock; "
    code += "print(hold_lock(Path(sys.argv[1])), flush=True); time.sleep(60)"
    lock = out.with_name(f".{out.name}.lock")
    out.parent.mkdir()
    command = [sys.executable, "-c", code, str(lock)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "None\n"
        with pytest.raises(UserError, match=rf"by another launcher/prepare\.py \(process {other.pid} on"):
            run(config)
        other.kill()
    run(config)
    assert not lock.exists()


def test_only_bad_rows_are_described_even_where_they_may_be_skipped(config, tmp_path):
    rows = "".join(f"film\tname{number}\n" for number in range(30))
    (tmp_path / "input" / "train.tsv").write_text(f"sentence\tlabel\n{rows}film\tname7\n")
    with pytest.raises(UserError) as caught:
        run(change(config, on_bad_row="skip"))
    message = str(caught.value)
    assert "train.tsv has no rows but bad ones" in message
    assert "31 unknown label" in message
    assert "Unknown labels: 2 'name7', 1 'name" in message
    assert "and 10 more names (is data.label_column the right column?)" in message


def test_what_is_prepared_is_found_while_another_run_holds_the_lock(config, out):
    """And where no lock can be written: on a read-only disk there is nothing to do either."""
    run(config)
    out.with_name(f".{out.name}.lock").mkdir()
    assert run(config)["reused"] is True


def test_where_rows_come_from_is_kept_and_determines_the_folder(config, out, tmp_path):
    run(config)
    assert load_manifest(out).splits["train"].sources == {}
    header, *lines = TRAIN.splitlines()
    named = [f"{line}\t{name}" for line, name in zip(lines, ("web", "books", "web"), strict=True)]
    (tmp_path / "input" / "train.tsv").write_text("\n".join([f"{header}\tfrom", *named]) + "\n")
    (tmp_path / "input" / "dev.tsv").write_text("sentence\tlabel\tfrom\nfilm\t1\tbooks\n")
    run(config, replace=True)
    with pytest.raises(UserError, match=r"source_column:  -> from"):
        run(change(config, source_column="from"))
    run(change(config, source_column="from"), replace=True)
    splits = load_manifest(out).splits
    assert (splits["train"].sources, splits["dev"].sources) == ({"web": 2, "books": 1}, {"books": 1})
    assert open_split(out, "train").sources.tolist() == [0, 1, 0]
    assert open_split(out, "dev").sources.tolist() == [0]


def test_a_row_without_its_source_is_a_bad_row(config, tmp_path):
    (tmp_path / "input" / "train.tsv").write_text("sentence\tlabel\tfrom\nfilm\t1\tweb\nfilm\t1\t\n")
    only_train = change(config, splits={"train": "train.tsv"}, source_column="from")
    with pytest.raises(UserError, match=r"train\.tsv:3: the source is missing"):
        run(only_train)


def test_too_many_sources_leave_nothing_behind(config, out, tmp_path, monkeypatch):
    monkeypatch.setattr("distill_dist.data.shard_writer.MOST_SOURCES", 3)
    rows = "".join(f"film\t1\tname{number}\n" for number in range(4))
    (tmp_path / "input" / "train.tsv").write_text(f"sentence\tlabel\tfrom\n{rows}")
    with pytest.raises(UserError, match=r"data\.source_column: the split 'train' has more than 3 "):
        run(change(config, splits={"train": "train.tsv"}, source_column="from"))
    assert list(out.parent.iterdir()) == []

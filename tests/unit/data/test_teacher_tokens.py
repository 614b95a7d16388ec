"""Two tokenizers, one row: both streams side by side, and nothing of it where there is one."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import tarfile
import zlib

import numpy as np
import pytest
import torch
from tiny_decoders import BEGIN, END, bpe_tokenizer
from tiny_shards import flip, write
from tokenizers import Tokenizer, models
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from distill_dist.config.schema import DataConfig
from distill_dist.curriculum.order import RandomOrder
from distill_dist.data.collate import as_filler, collate
from distill_dist.data.loader import StepLoader, evaluation_batches
from distill_dist.data.manifest import MANIFEST, load_manifest, manifest_hash
from distill_dist.data.prepare import prepare
from distill_dist.data.rows import TextRow
from distill_dist.data.shard_fetch import fetch_shard
from distill_dist.data.shards import open_split
from distill_dist.data.teacher_tokenization import TeacherTokenizer
from distill_dist.data.tokenization import folder_fingerprint
from distill_dist.data.window_reader import WindowedSplit
from distill_dist.errors import UserError

PAIRS = [
    ("good film", "bad dog runs"),
    ("a b c d e f g h", "some dog barks loudly near"),
    ("film", "é"),
    ("b", "no"),
]


@pytest.fixture
def teacher_folder(tmp_path):
    bpe_tokenizer().save_pretrained(tmp_path / "bpe")
    return tmp_path / "bpe"


@pytest.fixture
def plain(tmp_path, tiny_tokenizer):
    folder = tmp_path / "input"
    folder.mkdir()
    rows = "".join(f"{first}\t{second}\t{place % 2}\n" for place, (first, second) in enumerate(PAIRS))
    for split in ("train", "dev"):
        (folder / f"{split}.tsv").write_text(f"first\tsecond\tlabel\n{rows}", encoding="utf-8")
    return DataConfig(
        source="tsv",
        task="custom",
        path=str(folder),
        splits={"train": "train.tsv", "dev": "dev.tsv"},
        text_columns=("first", "second"),
        label_column="label",
        labels=("no", "yes"),
        tokenizer=str(tiny_tokenizer),
        max_length=16,
        rows_per_shard=3,
        prepared=str(tmp_path / "out" / "pairs"),
    )


@pytest.fixture
def config(plain, teacher_folder):
    return change(plain, teacher_tokenizer=str(teacher_folder), teacher_max_length=12)


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out" / "pairs"


def run(config, **kwargs):
    return prepare(config, progress=False, **kwargs)


def change(config, **kwargs):
    return dataclasses.replace(config, **kwargs)


def test_every_row_is_what_both_tokenizers_say_of_it(config, out, teacher_folder):
    """By map, by window and in the tar. Qwen's kind joins pairs with nothing: a line break goes in between."""
    summary = run(config)
    theirs, ours = (
        AutoTokenizer.from_pretrained(teacher_folder),
        AutoTokenizer.from_pretrained(config.tokenizer),
    )
    expected = [
        theirs(first, "\n" + second, truncation="longest_first", max_length=12)["input_ids"]
        for first, second in PAIRS
    ]
    assert theirs.decode(expected[0]) == "good film\nbad dog runs"
    split = open_split(out, "train")
    windowed = WindowedSplit(split)
    windowed.begin_epoch([(0, 1)])
    numbers = np.array([3, 0, 1, 2])
    for rows in (split.read(numbers), windowed.read(numbers)):
        for row, place in zip(rows, numbers, strict=True):
            assert row.teacher_tokens.tolist() == [expected[place], [0] * len(expected[place])]
            assert row.teacher_tokens.dtype == np.int64
            wanted = ours(*PAIRS[place], truncation="longest_first", max_length=16)["input_ids"]
            assert row.input_ids.tolist() == wanted
    windowed.close()
    with tarfile.open(out / "train" / "shard-000000.tar") as tar:
        names = [member.name for member in tar][:3]
        assert names == ["000000000.tokens.npy", "000000000.teacher.npy", "000000000.json"]
        assert np.load(io.BytesIO(tar.extractfile(names[1]).read()))[0].tolist() == expected[0]
        assert json.load(tar.extractfile(names[2]))["teacher_length"] == len(expected[0])
    manifest = load_manifest(out)
    assert manifest.teacher is not None
    assert manifest.teacher.tokens == {"train": sum(map(len, expected)), "dev": sum(map(len, expected))}
    assert manifest.teacher.truncated == {"train": 1, "dev": 1}
    assert (summary["teacher_tokens"], summary["teacher_truncated"]) == (2 * sum(map(len, expected)), 2)
    assert manifest.teacher.tokenizer == folder_fingerprint(out / "teacher_tokenizer")
    assert (manifest.teacher.vocab_size, manifest.teacher.max_length) == (len(theirs), 12)
    assert manifest.read_by_teacher is manifest.teacher


def test_without_it_nothing_has_changed(plain, config, out):
    run(plain)
    assert "teacher" not in (out / MANIFEST).read_text()
    alone = load_manifest(out)
    assert alone.read_by_teacher is alone
    assert open_split(out, "train").read(np.arange(4))[0].teacher_tokens is None
    bytes_alone = (out / "train" / "shard-000000.tar").read_bytes()
    run(config, replace=True)
    assert manifest_hash(load_manifest(out)) != manifest_hash(alone)
    assert (out / "train" / "shard-000000.tar").read_bytes() != bytes_alone
    # the folder of the second tokenizer is prepare's own: it goes with the rest
    run(plain, replace=True)
    assert manifest_hash(load_manifest(out)) == manifest_hash(alone)
    assert not (out / "teacher_tokenizer").exists()


def test_shards_of_one_stream_are_the_bytes_that_they_were_before_there_were_two(tmp_path):
    """Checksums of what the version before this feature wrote of these rows."""
    rows = []
    for number in range(5):
        tokens = np.stack([np.arange(number + 2) + 7 * number, np.arange(number + 2) % 2])
        rows.append((tokens, TextRow(number + 2, ("t",), number % 2, number - 1, 1)))
    write(tmp_path, rows, rows_per_shard=10)
    found = {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in (tmp_path / "train").iterdir()
    }
    assert found == {"shard-000000.tar": TAR, "shard-000000.index.npz": INDEX}
    found = hashlib.sha256((tmp_path / MANIFEST).read_bytes()).hexdigest()
    assert found == MANIFEST_BYTES
    assert manifest_hash(load_manifest(tmp_path)) == MANIFEST_HASH


TAR = "975a327ef59b5e77e6099d9a66aa9b50f0565734b92e058cf81692b33faffbf0"
INDEX = "89ce8a9a32918f22fdd7b33899cbf9649be4e90c690663c421b4b2f02ddf40d8"
MANIFEST_BYTES = "3207470824e5df6015a0c6746f87b71e124892949caef1e6a76809ae733c8203"
MANIFEST_HASH = "e695ebfc30a1d2e40866b3423d91b4669f48982f98f8b59dfa49b5d87e9c4d83"


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"teacher_tokenizer": "", "teacher_max_length": None}, r"teacher\.tokenizer: \w{64} -> \(none\)"),
        ({"teacher_max_length": None}, r"teacher\.max_length: 12 -> 16"),
        ({"teacher_separator": " "}, r"teacher\.separator: \\n -> "),
    ],
)
def test_it_is_reused_only_where_it_matches(config, out, changes, line):
    run(config)
    assert run(config)["reused"] is True
    before = (out / MANIFEST).read_bytes()
    with pytest.raises(UserError, match=line):
        run(change(config, **changes))
    assert (out / MANIFEST).read_bytes() == before
    assert run(change(config, max_length=16))["reused"] is True


def test_another_teachers_tokenizer_or_the_first_one_is_another_request(plain, config, tmp_path):
    run(plain)
    with pytest.raises(UserError, match=r"teacher\.tokenizer: \(none\) -> \w{64}"):
        run(config)
    run(config, replace=True)
    bpe_tokenizer(words=290).save_pretrained(tmp_path / "other")
    with pytest.raises(UserError, match=r"teacher\.tokenizer: \w{64} -> \w{64}"):
        run(change(config, teacher_tokenizer=str(tmp_path / "other")))


def test_a_flipped_bit_of_the_teachers_tokens_is_found_and_named(config, out):
    run(config)
    split = open_split(out, "train")
    block = split.block(0)
    assert block.streams == 2
    assert (np.diff(block.offset) > 0).all()
    flip(out / "train" / "shard-000000.tar", int(block.offset[3]))  # of row 1, the teacher's
    split.read(np.array([0, 2, 3]))
    with pytest.raises(UserError, match=r"shard-000000\.tar is missing or damaged \(row 1 does not"):
        split.read(np.array([1]))
    with pytest.raises(UserError, match=r"shard-000000\.tar is missing or damaged \(row 1 does not"):
        fetch_shard(block, lambda size: None)


def test_a_large_vocabulary_of_the_teacher_takes_four_bytes_and_the_students_two(config, out, teacher_folder):
    tokenizer = AutoTokenizer.from_pretrained(teacher_folder)
    tokenizer.add_tokens([f"w{number}" for number in range((1 << 16) + 1 - len(tokenizer))])
    tokenizer.save_pretrained(teacher_folder)
    run(config)
    with np.load(out / "train" / "shard-000000.index.npz") as index:
        assert (str(index["dtype"]), str(index["teacher_dtype"])) == ("<u2", "<i4")
        raw = zlib.crc32(
            open_split(out, "train").read(np.array([0]))[0].teacher_tokens.astype("<i4").tobytes()
        )
        assert int(index["teacher_crc32"][0]) == raw


def tokens(name, *, separator="\n", max_length=64, **more):
    return TeacherTokenizer(bpe_tokenizer(**more), max_length=max_length, name=name, separator=separator)


def test_pairs_are_joined_as_the_tokenizer_joins_them():
    template, plain = tokens("t", template=True), tokens("t")
    decode = bpe_tokenizer().decode
    (row,) = template.encode([("good", "bad")])
    assert decode(row.tokens[0]) == f"{BEGIN}good{BEGIN}bad"
    assert decode(plain.encode([("good", "bad")])[0].tokens[0]) == "good\nbad"
    assert decode(tokens("t", separator="").encode([("good", "bad")])[0].tokens[0]) == "goodbad"
    assert decode(plain.encode([("good",)])[0].tokens[0]) == "good"


def test_the_end_token_pads_where_there_is_none_for_it_and_that_is_said(config, out, capsys):
    run(config)
    assert f"has no pad_token: its '{END}' pads, under the mask" in capsys.readouterr().err
    assert load_manifest(out).teacher.pad_token_id == 1
    assert tokens("t", padding=True).pad_token_id == 2


def test_what_cannot_be_a_teachers_tokenizer_is_named():
    bare = bpe_tokenizer()
    bare.eos_token = None
    with pytest.raises(UserError, match="t has no pad_token and no eos_token"):
        TeacherTokenizer(bare, max_length=8, name="t", separator="")
    short = bpe_tokenizer()
    short.model_max_length = 32
    with pytest.raises(UserError, match=r"data\.teacher_max_length 64: t allows at most 32"):
        TeacherTokenizer(short, max_length=64, name="t", separator="")
    holes = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.BPE({"a": 0, "</s>": 1}, [])), eos_token="</s>"
    )
    teacher = TeacherTokenizer(holes, max_length=8, name="t", separator="")
    assert teacher.encode([("a",)])[0].tokens.tolist() == [[0], [0]]
    with pytest.raises(UserError, match="t makes no token of 'é': give it an unknown token"):
        teacher.encode([("a",), ("é",)])


def test_a_split_cannot_take_its_folders_name(config):
    with pytest.raises(UserError, match="'teacher_tokenizer' is taken"):
        run(change(config, splits={**config.splits, "teacher_tokenizer": "dev.tsv"}))


def test_a_batch_pads_each_stream_to_its_own_longest_row(config, out):
    run(config)
    rows = open_split(out, "train").read(np.array([2, 0, 3]))
    batch = collate(rows, pad_token_id=0)
    ids_BL, mask_BL, types_BL = batch.teacher_inputs
    assert (
        ids_BL.shape
        == mask_BL.shape
        == types_BL.shape
        == (3, max(row.teacher_tokens.shape[1] for row in rows))
    )
    assert ids_BL.shape[1] != batch.input_ids_BL.shape[1]
    for place, row in enumerate(rows):
        assert ids_BL[place][mask_BL[place].bool()].tolist() == row.teacher_tokens[0].tolist()
        assert (
            batch.input_ids_BL[place][batch.attention_mask_BL[place].bool()].tolist()
            == row.input_ids.tolist()
        )
    filler = as_filler(batch)
    assert torch.equal(filler.teacher_inputs[0], ids_BL)
    assert not filler.is_real_B.any()
    moved = batch.to("meta")
    assert [tensor.device.type for tensor in moved.teacher_inputs] == ["meta"] * 3
    alone = collate([dataclasses.replace(row, teacher_tokens=None) for row in rows], pad_token_id=0)
    assert alone.teacher_inputs == alone.inputs


def test_training_and_evaluation_batches_carry_it_along(config, out):
    run(config)
    split = open_split(out, "train")
    known = {row.row: row.teacher_tokens[0].tolist() for row in split.read(np.arange(4))}
    order = RandomOrder(num_rows=4, seed=5)
    loaders = [
        StepLoader(
            split=split, rows_at=order.rows_at, rank=rank, size=3, seed=5, batch_size=3, window=2,
            micro_tokens=20, pad_token_id=0,
        )
        for rank in range(3)
    ]  # fmt: skip
    batches = [batch for loader in loaders for step in loader.steps(epochs=1) for batch in step.batches]
    assert any(not batch.is_real_B.any() for batch in batches), "a filler"
    for rank in range(2):
        batches += evaluation_batches(split, rank=rank, size=2, micro_tokens=20, pad_token_id=0)
    for batch in batches:
        ids_BL, mask_BL, _ = batch.teacher_inputs
        for place, row in enumerate(batch.ids_B.tolist()):
            assert ids_BL[place][mask_BL[place].bool()].tolist() == known[row]

from __future__ import annotations

import gc
import json
import pickle
import tarfile
import zipfile
from dataclasses import replace

import numpy as np
import pytest
import webdataset
from tiny_shards import flip, make_rows, write

from distill_dist.data.manifest import save_manifest
from distill_dist.data.shard_index import NO_TIME
from distill_dist.data.shard_writer import MOST_SOURCES, _member_header
from distill_dist.data.shards import find_damage, open_split
from distill_dist.durable import sha256_file
from distill_dist.errors import UserError


@pytest.fixture
def prepared(tmp_path):
    rows = make_rows(25)
    return tmp_path, rows, write(tmp_path, rows)


@pytest.mark.parametrize("dtype", ["<u2", "<i4"])
def test_random_rows_come_back_as_written(tmp_path, dtype):
    rows = make_rows(25)
    write(tmp_path, rows, dtype=dtype)
    split = open_split(tmp_path, "train")
    assert split.num_rows == 25
    asked = np.array([24, 0, 9, 10, 10, 19, 20])
    examples = split.read(asked)
    assert [example.row for example in examples] == asked.tolist()
    for example in examples:
        tokens, row = rows[example.row]
        np.testing.assert_array_equal(example.input_ids, tokens[0])
        np.testing.assert_array_equal(example.token_type_ids, tokens[1])
        assert example.label == row.label
        assert example.input_ids.dtype == example.token_type_ids.dtype == np.int64
    assert split.read(np.array([], dtype=np.int64)) == []


def test_what_is_known_without_reading_rows(prepared):
    folder, rows, _ = prepared
    split = open_split(folder, "train")
    np.testing.assert_array_equal(split.lengths, [tokens.shape[1] for tokens, _ in rows])
    np.testing.assert_array_equal(split.labels, [row.label for _, row in rows])
    np.testing.assert_array_equal(split.clean_labels, [row.clean_label for _, row in rows])
    np.testing.assert_array_equal(split.difficulties, [row.difficulty for _, row in rows])
    dtypes = [x.dtype for x in (split.lengths, split.labels, split.clean_labels, split.difficulties)]
    assert dtypes == [np.uint16, np.int32, np.int32, np.int32]


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # webdataset leaves its last shard open
def test_any_webdataset_pipeline_reads_the_shards(prepared):
    folder, rows, manifest = prepared
    urls = [str(folder / shard.file) for shard in manifest.splits["train"].shards]
    assert len(urls) == 3
    samples = list(webdataset.WebDataset(urls, shardshuffle=False).decode())
    gc.collect()
    assert [sample["__key__"] for sample in samples] == [f"{number:09d}" for number in range(25)]
    for sample, (tokens, row) in zip(samples, rows, strict=True):
        np.testing.assert_array_equal(sample["tokens.npy"], tokens)
        assert sample["json"] == {
            "label": row.label,
            "length": tokens.shape[1],
            "row": row.line,
            "difficulty": row.difficulty,
        }


def test_tar_reads_the_shards_and_members_have_no_time_and_owner(prepared):
    folder, _, manifest = prepared
    with tarfile.open(folder / manifest.splits["train"].shards[-1].file) as tar:
        members = tar.getmembers()
        assert {(m.mtime, m.uid, m.gid, m.uname, m.mode) for m in members} == {(0, 0, 0, "", 0o644)}
        assert json.load(tar.extractfile(members[-1]))["row"] == 3 * 24 + 2
    assert (folder / manifest.splits["train"].shards[-1].file).stat().st_size % tarfile.RECORDSIZE == 0
    with zipfile.ZipFile(folder / "train" / "shard-000000.index.npz") as index:
        assert {entry.date_time for entry in index.infolist()} == {NO_TIME}


@pytest.mark.parametrize("size", [0, 1, 511, 512, 8**11 - 1])
def test_member_headers_are_tarfiles(size):
    member = tarfile.TarInfo("000000012.tokens.npy")
    member.size = size
    assert _member_header(member.name, size) == member.tobuf(tarfile.USTAR_FORMAT)


def test_counts(prepared):
    _, rows, manifest = prepared
    entry = manifest.splits["train"]
    lengths = [tokens.shape[1] for tokens, _ in rows]
    assert (entry.rows, entry.tokens, entry.truncated) == (25, sum(lengths), 3)
    assert entry.labels == {"no": 13, "yes": 12}
    assert [shard.rows for shard in entry.shards] == [10, 10, 5]
    assert entry.lengths["9-16"] == sum(9 <= length <= 16 for length in lengths) > 0
    assert sum(entry.lengths.values()) == 25


def test_equal_rows_give_equal_bytes_and_other_rows_do_not(tmp_path):
    first = write(tmp_path / "a", make_rows(12))
    second = write(tmp_path / "b", make_rows(12))
    other = write(tmp_path / "c", make_rows(12, seed=1))
    assert first != other
    assert first == second


def test_a_full_last_shard_is_not_followed_by_an_empty_one(tmp_path):
    assert len(write(tmp_path, make_rows(20)).splits["train"].shards) == 2


def test_a_flipped_bit_is_found_when_its_row_is_read_and_only_then(prepared):
    folder, _, manifest = prepared
    shard = folder / "train" / "shard-000001.tar"
    split = open_split(folder, "train")
    flip(shard, int(split._streams[0].offsets[13]) + 1)
    split = open_split(folder, "train")
    split.read(np.array([12, 14, 3]))
    with pytest.raises(UserError, match=r"shard-000001.tar is missing or damaged \(row 13 .* prepare again"):
        split.read(np.array([12, 13]))
    assert "shard-000001.tar" in (find_damage(folder, manifest) or "")


def test_damage_outside_of_tokens_is_found_by_the_full_check(prepared):
    folder, _, manifest = prepared
    assert find_damage(folder, manifest) is None
    flip(folder / "train" / "shard-000002.tar", 0)
    assert "shard-000002.tar" in (find_damage(folder, manifest) or "")


def cut(path):
    path.write_bytes(path.read_bytes()[:-512])


@pytest.mark.parametrize("harm", [cut, lambda path: path.unlink()], ids=["cut", "missing"])
@pytest.mark.parametrize("suffix", [".tar", ".index.npz"])
def test_a_shard_or_index_that_is_cut_or_missing_is_named_at_opening(prepared, harm, suffix):
    folder, _, manifest = prepared
    harm(folder / "train" / f"shard-000001{suffix}")
    with pytest.raises(UserError, match=r"shard-000001.tar is missing or damaged .* prepare again"):
        open_split(folder, "train")
    assert "shard-000001.tar" in (find_damage(folder, manifest) or "")


def test_another_index_is_refused_before_it_is_parsed(prepared):
    folder, _, _ = prepared
    flip(folder / "train" / "shard-000000.index.npz", 200)
    with pytest.raises(UserError, match=r"shard-000000.tar .* index does not have the manifest's sha256"):
        open_split(folder, "train")


def test_an_index_that_pickles_is_not_unpickled(prepared):
    folder, _, manifest = prepared
    path = folder / "train" / "shard-000000.index.npz"
    np.savez(path, offset=np.array([print], dtype=object))
    entry = manifest.splits["train"]
    shard = replace(entry.shards[0], index_sha256=sha256_file(path))
    entry = replace(entry, shards=(shard, *entry.shards[1:]))
    save_manifest(replace(manifest, splits={"train": entry}), folder)
    with pytest.raises(UserError, match=r"index cannot be read: .*allow_pickle=False"):
        open_split(folder, "train")


def test_sources_are_numbered_by_first_appearance_and_counted(tmp_path):
    manifest = write(tmp_path, make_rows(25, sources=("web", "books", "web")))
    assert list(manifest.splits["train"].sources.items()) == [("web", 17), ("books", 8)]
    sources = open_split(tmp_path, "train").sources
    assert sources.dtype == np.int32
    assert sources.tolist() == ([0, 1, 0] * 9)[:25]


def test_without_a_column_no_row_has_a_source(prepared):
    folder, _, manifest = prepared
    assert manifest.splits["train"].sources == {}
    assert open_split(folder, "train").sources.tolist() == [-1] * 25


def test_a_source_for_nearly_every_row_is_refused(tmp_path, monkeypatch):
    assert MOST_SOURCES == 1000  # as the field's documentation says
    monkeypatch.setattr("distill_dist.data.shard_writer.MOST_SOURCES", 3)
    rows = make_rows(9, sources=("a", "b", "c"))
    assert write(tmp_path / "a", rows).splits["train"].sources == {"a": 3, "b": 3, "c": 3}
    more = make_rows(1, sources=("one more",))
    with pytest.raises(UserError, match=r"data\.source_column: the split 'train' .* than 3 .*'one more'"):
        write(tmp_path / "b", rows + more)


def test_the_sizes_of_the_shards(prepared):
    folder, _, manifest = prepared
    split = open_split(folder, "train")
    shards = manifest.splits["train"].shards
    assert split.block_sizes.tolist() == [10, 10, 5]
    assert split.block_bytes.tolist() == [(folder / shard.file).stat().st_size for shard in shards]
    assert split.block_sizes.dtype == split.block_bytes.dtype == np.int64


def test_a_block_says_where_its_rows_lie(prepared):
    folder, rows, _ = prepared
    block = open_split(folder, "train").block(1)
    content = block.path.read_bytes()
    assert (block.first_row, block.bytes, len(block.offset)) == (10, len(content), 10)
    for (tokens, _), offset, size in zip(rows[10:20], block.offset, block.size, strict=True):
        assert content[offset : offset + size] == tokens.astype("<u2").tobytes()


def test_unknown_split_and_absent_folder(prepared):
    folder, _, _ = prepared
    with pytest.raises(UserError, match="no split 'dev'; it has train"):
        open_split(folder, "dev")
    with pytest.raises(UserError, match=r"no prepared data in .*launcher/prepare.py"):
        open_split(folder / "nowhere", "train")


@pytest.mark.parametrize("rows", [[25], [-1], [0, 26]])
def test_rows_outside_of_the_split_are_a_bug_of_the_caller(prepared, rows):
    with pytest.raises(IndexError):
        open_split(prepared[0], "train").read(np.array(rows))


def test_a_split_travels_to_another_process(prepared):
    folder, rows, _ = prepared
    split = open_split(folder, "train")
    split.read(np.array([0]))
    copy = pickle.loads(pickle.dumps(split))
    np.testing.assert_array_equal(copy.read(np.array([5]))[0].input_ids, rows[5][0][0])

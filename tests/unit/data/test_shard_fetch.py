from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from tiny_shards import flip, make_rows, write

import distill_dist.data.shard_fetch as module
from distill_dist.data.shard_fetch import fetch_shard
from distill_dist.data.shards import open_split
from distill_dist.errors import UserError


def ignore(size):
    pass


@pytest.fixture
def block(tmp_path):
    write(tmp_path, make_rows(25))
    return open_split(tmp_path, "train").block(1)


@pytest.mark.parametrize("chunk", [1, 7, 512, 600, 1 << 18])
def test_the_rows_whatever_the_chunks(block, monkeypatch, chunk):
    monkeypatch.setattr(module, "CHUNK_BYTES", chunk)
    told = []
    shard = fetch_shard(block, told.append)
    rows = [tokens.astype("<u2").tobytes() for tokens, _ in make_rows(25)[10:20]]
    assert bytes(shard.data) == b"".join(rows)  # and nothing of the tar
    assert shard.begins.tolist() == np.cumsum([0, *map(len, rows)]).tolist()
    assert told == [*range(chunk, block.bytes, chunk), block.bytes]


def test_a_flipped_bit_names_shard_and_row(block):
    flip(block.path, int(block.offset[3]) + 1)
    with pytest.raises(UserError, match=r"shard-000001\.tar is missing or damaged \(row 13 .* prepare again"):
        fetch_shard(block, ignore)


@pytest.mark.parametrize("change", [-512, 512])
def test_another_length_is_damage(block, change):
    content = block.path.read_bytes()
    block.path.write_bytes((content + bytes(512))[: len(content) + change])
    with pytest.raises(UserError, match=rf"has {len(content) + change} bytes instead of {len(content)}"):
        fetch_shard(block, ignore)


def test_a_tar_cut_inside_of_a_row_is_damage(block):
    block.path.write_bytes(block.path.read_bytes()[: int(block.offset[5]) + 1])
    with pytest.raises(UserError, match=rf"has {int(block.offset[5]) + 1} bytes instead of {block.bytes}"):
        fetch_shard(block, ignore)


def test_one_that_is_not_there_or_may_not_be_opened(block, monkeypatch):
    absent = dataclasses.replace(block, path=block.path.with_name("absent.tar"))
    with pytest.raises(
        UserError, match=r"absent\.tar cannot be fetched \(.*No such file.*start the run again"
    ):
        fetch_shard(absent, ignore)
    monkeypatch.setattr("webdataset.utils.enforce_security", True)
    with pytest.raises(UserError, match=r"shard-000001\.tar cannot be fetched \(.*cannot open local files"):
        fetch_shard(block, ignore)


def test_a_relative_path_with_a_colon_is_a_path(block, monkeypatch):
    folder = block.path.parent
    folder.rename(folder.with_name("a:b"))
    monkeypatch.chdir(folder.parent)
    relative = dataclasses.replace(block, path=type(folder)("a:b", block.path.name))
    assert len(fetch_shard(relative, ignore).data) == block.size.sum()

from __future__ import annotations

import json
from dataclasses import asdict, replace

import pytest

from distill_dist.data.manifest import (
    MANIFEST,
    Manifest,
    ShardEntry,
    SplitEntry,
    load_manifest,
    manifest_hash,
    save_manifest,
)
from distill_dist.errors import UserError


@pytest.fixture
def manifest():
    shard = ShardEntry("train/shard-000000.tar", 2, 10240, "aa", "bb")
    split = SplitEntry(2, 9, 1, {"empty text": 1}, {"1-8": 2}, {"no": 1, "yes": 1}, {"web": 2}, (shard,))
    return Manifest(
        "custom", "accuracy", ("no", "yes"), 8, 0, 16, "cc", {"train": split}, {"splits": {"train": {}}}
    )


def test_round_trip(manifest, tmp_path):
    save_manifest(manifest, tmp_path)
    assert load_manifest(tmp_path) == manifest


def test_the_hash_follows_the_rows_and_not_where_they_came_from(manifest):
    split = manifest.splits["train"]
    shard = replace(split.shards[0], sha256="ab")
    rows_differ = replace(manifest, splits={"train": replace(split, shards=(shard,))})
    assert manifest_hash(rows_differ) != manifest_hash(manifest)
    assert manifest_hash(replace(manifest, labels=("yes", "no"))) != manifest_hash(manifest)
    assert manifest_hash(replace(manifest, request={"other": 1})) == manifest_hash(manifest)


def test_absent(tmp_path):
    with pytest.raises(UserError, match=r"no prepared data in .*run python launcher/prepare.py --config"):
        load_manifest(tmp_path)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [({"format": 1}, "has format 1, this version reads 2"), ({"splits": {"train": 3}}, "is broken")],
)
def test_broken_or_of_another_version_but_ours(manifest, tmp_path, changes, reason):
    record = json.loads(json.dumps(asdict(manifest)))
    (tmp_path / MANIFEST).write_text(json.dumps({**record, **changes}))
    with pytest.raises(UserError, match=rf"manifest.json {reason}.*prepare again .*--replace"):
        load_manifest(tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        "[" * 100_000,
        '{"name": "my app"}',
        '{"format": 1}',
        '{"splits": {}, "request": {}}',
        '{"format": 1, "splits": 3, "request": {}}',
    ],
    ids=range(7),
)
def test_a_manifest_of_somebody_else_is_not_to_be_replaced(tmp_path, content):
    (tmp_path / MANIFEST).write_text(content)
    with pytest.raises(UserError, match=r"manifest.json .*name another folder") as caught:
        load_manifest(tmp_path)
    assert "--replace" not in str(caught.value)


def test_a_manifest_that_cannot_be_read(tmp_path):
    (tmp_path / MANIFEST).mkdir()
    with pytest.raises(UserError, match=r"manifest.json: Is a directory"):
        load_manifest(tmp_path)


def test_an_unknown_field_is_an_error(manifest, tmp_path):
    save_manifest(manifest, tmp_path)
    record = json.loads((tmp_path / MANIFEST).read_text())
    (tmp_path / MANIFEST).write_text(json.dumps({**record, "more": 1}))
    with pytest.raises(UserError, match="more"):
        load_manifest(tmp_path)

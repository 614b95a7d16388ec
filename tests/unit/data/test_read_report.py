from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from tiny_shards import make_rows, write

from distill_dist.data.read_report import _touched_bytes, read_report
from distill_dist.data.shards import open_split


@pytest.fixture
def split(tmp_path):
    write(tmp_path, make_rows(45), rows_per_shard=10)  # 5 shards
    return open_split(tmp_path, "train")


def test_windows_read_every_shard_once_and_hold_three_windows(split):
    report = read_report(split, window_shards=1)
    assert report.bytes_used == 4 * split.lengths.sum(dtype=int)  # two numbers of two bytes a token
    assert report.bytes_read == split.block_bytes.sum()
    sizes = sorted(4 * int(split.lengths[first : first + 10].sum(dtype=int)) for first in range(0, 50, 10))
    assert report.cache_bytes == sum(sizes[-3:])
    assert read_report(split, window_shards=2).cache_bytes == sum(sizes)
    assert f"{report.amplification:.1f} bytes per byte" in report.text


def test_random_rows_read_the_pages_they_touch_and_want_all_shards_cached(split):
    report = read_report(split, window_shards=0)
    pages = 0
    for shard in range(5):
        block = split.block(shard)
        for offset, size in zip(block.offset.tolist(), block.size.tolist(), strict=True):
            pages += len({byte // 4096 for byte in range(offset, offset + size)})
    assert report.bytes_read == 4096 * pages >= 4096 * 45
    assert report.cache_bytes == split.block_bytes.sum()
    assert report.amplification == report.bytes_read / report.bytes_used > 10
    assert "while the page cache is cold" in report.text


@pytest.mark.parametrize(("offset", "pages"), [(0, 1), (3712, 1), (3713, 2), (4095, 2), (4096, 1)])
def test_a_row_that_ends_with_its_page_does_not_touch_the_next(split, offset, pages):
    one = np.array([offset]), np.array([384])
    block = dataclasses.replace(split.block(0), offset=one[0], size=one[1])
    assert _touched_bytes(block) == 4096 * pages

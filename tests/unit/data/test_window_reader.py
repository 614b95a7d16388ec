from __future__ import annotations

import gc
import threading

import numpy as np
import pytest
import webdataset
from tiny_shards import flip, make_rows, write

import distill_dist.data.window_fetcher as fetcher_module
from distill_dist.data.shards import open_split
from distill_dist.data.window_reader import WindowedSplit
from distill_dist.errors import UserError

WINDOWS = [(4, 1), (0, 3), (6, 5), (2,)]  # of 7 shards of 10 rows, the last of 5


@pytest.fixture
def split(tmp_path):
    write(tmp_path, make_rows(65))
    return open_split(tmp_path, "train")


@pytest.fixture
def windowed(split):
    reader = WindowedSplit(split, deadline_s=20.0)
    yield reader
    reader.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "window-fetcher"]


@pytest.fixture
def log(monkeypatch):
    """The shards that were fetched, by number, and a gate that lets so many through."""
    fetched, gate = [], threading.Semaphore(1000)
    fetch = fetcher_module.fetch_shard

    def record(block, report):
        gate.acquire()
        found = fetch(block, report)
        fetched.append(block.first_row // 10)
        return found

    monkeypatch.setattr(fetcher_module, "fetch_shard", record)
    fetched_and_gate = fetched, gate
    yield fetched_and_gate
    for _ in range(100):
        gate.release()


def rows_of(*shards):
    return np.concatenate([np.arange(10 * shard, min(10 * shard + 10, 65)) for shard in shards])


def settle(reader, fetches):
    """Waits until so many shards are fetched."""
    event = threading.Event()
    for _ in range(2000):
        if reader.fetches >= fetches:
            break
        event.wait(0.005)
    event.wait(0.05)  # one more would come about now
    return reader.fetches


def same(found, expected):
    assert [example.row for example in found] == [example.row for example in expected]
    for one, other in zip(found, expected, strict=True):
        assert one.label == other.label
        np.testing.assert_array_equal(one.input_ids, other.input_ids)
        np.testing.assert_array_equal(one.token_type_ids, other.token_type_ids)
        assert one.input_ids.dtype == np.int64


def test_the_rows_are_those_of_the_split_and_every_shard_is_fetched_once_an_epoch(split, windowed, log):
    rng = np.random.default_rng(0)
    for epoch in range(2):
        windowed.begin_epoch(WINDOWS)
        order = np.concatenate([rng.permutation(rows_of(*window)) for window in WINDOWS])
        for batch in np.split(order, range(8, 65, 8)):  # 8 does not divide the windows: batches straddle
            same(windowed.read(batch), split.read(batch))
        assert windowed.fetches == 7 * (epoch + 1)
        assert windowed.bytes_fetched == (epoch + 1) * split.block_bytes.sum()
    assert log[0] == [4, 1, 0, 3, 6, 5, 2] * 2
    assert windowed.waited_s > 0


def test_it_looks_like_the_split(split, windowed):
    assert windowed.num_rows == 65
    for name in (
        "lengths",
        "labels",
        "clean_labels",
        "difficulties",
        "sources",
        "block_sizes",
        "block_bytes",
    ):
        assert getattr(windowed, name) is getattr(split, name)
    with pytest.raises(IndexError):
        windowed.read(np.array([65]))
    assert windowed.read(np.array([], dtype=np.int64)) == []


@pytest.mark.parametrize("dtype", ["<u2", "<i4"])
@pytest.mark.filterwarnings("ignore::ResourceWarning")  # webdataset leaves its last shard open
def test_the_rows_are_those_that_a_webdataset_pipeline_streams(tmp_path, dtype):
    manifest = write(tmp_path, make_rows(65), dtype=dtype)
    reader = WindowedSplit(open_split(tmp_path, "train"))
    urls = [str(tmp_path / shard.file) for shard in manifest.splits["train"].shards]
    samples = list(webdataset.WebDataset(urls, shardshuffle=False).decode())
    gc.collect()
    reader.begin_epoch([(0, 1, 2), (3, 4, 5), (6,)])
    found = [example for row in range(65) for example in reader.read(np.array([row]))]
    reader.close()
    assert len(samples) == len(found) == 65
    for sample, example in zip(samples, found, strict=True):
        assert (int(sample["__key__"]), sample["json"]["label"]) == (example.row, example.label)
        np.testing.assert_array_equal(sample["tokens.npy"], [example.input_ids, example.token_type_ids])


def test_the_next_window_is_fetched_ahead_and_no_other(windowed, log):
    windowed.begin_epoch(WINDOWS)
    assert settle(windowed, 4) == 4  # windows 0 and 1, unasked
    windowed.read(rows_of(4))
    assert settle(windowed, 4) == 4
    windowed.read(rows_of(0)[:1])  # the first row of window 1
    assert settle(windowed, 6) == 6
    assert log[0] == [4, 1, 0, 3, 6, 5]


def test_a_window_stays_until_the_one_after_the_next_is_asked_for(split, windowed):
    windowed.begin_epoch(WINDOWS)
    both = np.array([30, 49, 0, 10])  # windows 1, 0, 1, 0
    same(windowed.read(both), split.read(both))
    same(windowed.read(rows_of(4)), split.read(rows_of(4)))
    windowed.read(rows_of(6))
    same(windowed.read(rows_of(3)), split.read(rows_of(3)))
    with pytest.raises(AssertionError, match="windows before 1 are dropped"):
        windowed.read(rows_of(4))
    held = windowed._fetcher._held
    assert set(held) <= {0, 3, 6, 5, 2}
    assert settle(windowed, 7) == 7
    windowed.release(2)
    assert set(held) == {6, 5, 2}
    with pytest.raises(AssertionError, match="windows before 2 are dropped"):
        windowed.read(rows_of(3))
    windowed.close()
    assert held == {}


def test_rows_of_no_window_and_of_windows_too_far_apart_are_a_bug(windowed):
    windowed.begin_epoch(WINDOWS[:3])
    with pytest.raises(AssertionError, match="not all in the epoch's windows"):
        windowed.read(rows_of(2))
    with pytest.raises(AssertionError, match="windows before 1 are dropped"):
        windowed.read(np.array([49, 60]))
    with pytest.raises(AssertionError, match="stands in two windows"):
        windowed.begin_epoch([(0, 1), (1,)])
    with pytest.raises(AssertionError, match="begin_epoch comes first"):
        windowed.read(rows_of(0))


def test_a_run_resumes_in_mid_epoch(split, windowed, log):
    windowed.begin_epoch(WINDOWS, start_window=2)
    batch = np.array([55, 64, 21])
    same(windowed.read(batch), split.read(batch))
    assert log[0] == [6, 5, 2]
    with pytest.raises(AssertionError, match="windows before 2 are dropped"):
        windowed.read(rows_of(0))


def test_windows_that_are_passed_over_are_not_fetched(split, windowed, log):
    windowed.begin_epoch([(number,) for number in range(7)])
    settle(windowed, 2)
    same(windowed.read(rows_of(5)), split.read(rows_of(5)))
    assert settle(windowed, 5) == 5
    assert log[0] == [0, 1, 4, 5, 6]


def test_an_epoch_may_begin_while_the_last_is_not_at_its_end(split, windowed, log):
    windowed.begin_epoch(WINDOWS)
    windowed.read(rows_of(4)[:1])
    windowed.begin_epoch(WINDOWS[::-1])
    same(windowed.read(rows_of(2)), split.read(rows_of(2)))
    assert log[0].count(2) == 1


def test_a_damaged_shard_is_named_where_its_rows_are_asked_for(split, windowed):
    flip(split.block(3).path, int(split.block(3).offset[2]))
    windowed.begin_epoch(WINDOWS)
    settle(windowed, 3)  # the thread is past the damage by now
    same(windowed.read(rows_of(4, 1)), split.read(rows_of(4, 1)))
    for _ in range(2):
        with pytest.raises(
            UserError, match=r"shard-000003\.tar is missing or damaged \(row 32 .* prepare again"
        ):
            windowed.read(rows_of(3))


def test_a_shard_that_vanishes_is_named(split, windowed):
    windowed.begin_epoch([(0,), (1,), (2,)])
    settle(windowed, 2)
    split.block(2).path.unlink()
    windowed.read(rows_of(0, 1))
    with pytest.raises(UserError, match=r"shard-000002\.tar cannot be fetched"):
        windowed.read(rows_of(2))


def test_an_error_of_our_own_in_the_thread_is_raised_too(windowed, monkeypatch):
    def broken(block, report):
        raise KeyError("a bug")

    monkeypatch.setattr(fetcher_module, "fetch_shard", broken)
    windowed.begin_epoch(WINDOWS)
    with pytest.raises(KeyError, match="a bug"):
        windowed.read(rows_of(4))


def test_a_fetch_without_progress_is_named_after_the_deadline(split, log):
    windowed = WindowedSplit(split, deadline_s=0.05)
    for _ in range(1000):
        log[1].acquire()
    log[1].release()  # shard 4 comes, shard 1 hangs
    windowed.begin_epoch(WINDOWS)
    windowed.read(rows_of(4))
    with pytest.raises(UserError, match=r"shard-000001\.tar \(at byte 0\): nothing came for 0\.05 s"):
        windowed.read(rows_of(1))
    for _ in range(10):
        log[1].release()
    same(windowed.read(rows_of(1)), split.read(rows_of(1)))  # it came after all
    windowed.close()


def test_a_slow_fetch_that_goes_on_is_waited_for(split, windowed, monkeypatch):
    fetch, pause = fetcher_module.fetch_shard, threading.Event()

    def slow(block, report):
        for size in range(1, 21):
            report(size)
            pause.wait(0.02)  # 0.4 s in all
        return fetch(block, report)

    monkeypatch.setattr(fetcher_module, "fetch_shard", slow)
    monkeypatch.setattr(fetcher_module, "POLL_S", 0.02)
    reader = WindowedSplit(split, deadline_s=0.2)
    reader.begin_epoch([(4,)])
    same(reader.read(rows_of(4)), split.read(rows_of(4)))
    reader.close()


def test_closing_ends_a_fetch_at_its_next_chunk(windowed, monkeypatch):
    started = threading.Event()

    def endless(block, report):
        while True:
            report(1)
            started.set()

    monkeypatch.setattr(fetcher_module, "fetch_shard", endless)
    windowed.begin_epoch(WINDOWS)
    assert started.wait(10)
    windowed.close()
    windowed.close()


def test_a_fetch_that_hangs_is_left_behind_with_a_warning(split, log, monkeypatch, caplog):
    monkeypatch.setattr(fetcher_module, "CLOSE_S", 0.05)
    for _ in range(1000):
        log[1].acquire()
    windowed = WindowedSplit(split)
    windowed.begin_epoch(WINDOWS)
    settle(windowed, 0)  # it hangs by now
    thread = windowed._fetcher._thread
    windowed.close()
    assert "shard-000004.tar (at byte 0): its fetch hangs" in caplog.text
    assert thread.daemon
    log[1].release()
    thread.join(10)
    assert (thread.is_alive(), windowed.fetches) == (False, 0)  # it ended at its first chunk

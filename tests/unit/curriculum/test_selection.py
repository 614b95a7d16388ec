"""Thresholds against numpy's sort: the same rows below each, however the rows are dealt and cut."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest

from curriculum.test_keys import row_of_hash
from distill_dist.curriculum import selection
from distill_dist.curriculum.keys import ABOVE_ALL, row_hashes, score_keys
from distill_dist.curriculum.levels import CHUNK, Blocks, Levels, Rows, count_levels
from distill_dist.curriculum.selection import select

SEED = 11
KINDS = ["floats", "ties", "saturated", "integers", "constant", "nans", "extremes"]


def confidence(kind: str, num_rows: int) -> np.ndarray:
    """Float32 [num_rows] of one kind."""
    rng = np.random.default_rng(num_rows)
    floats = rng.random(num_rows, dtype=np.float32)
    if kind == "ties":
        return np.where(rng.random(num_rows) < 0.1, rng.choice(floats, num_rows), floats)
    if kind == "saturated":
        return (1 / (1 + np.exp(-rng.normal(4, 3, num_rows)))).astype(np.float32)
    if kind == "integers":
        return rng.integers(0, 100, num_rows).astype(np.float32)
    if kind == "constant":
        return np.full(num_rows, 0.5, np.float32)
    if kind == "nans":
        return np.where(rng.random(num_rows) < 0.3, np.float32(np.nan), floats)
    if kind == "extremes":
        return rng.choice(
            np.array([-np.inf, -1, -0.0, 0.0, 1e-45, -1e-45, np.inf, np.nan], np.float32), num_rows
        )
    return floats


def sorted_rows(
    values: np.ndarray, rows: np.ndarray, *, direction: str = "easy_to_hard", unscored: str = "hardest"
) -> np.ndarray:
    """Places of ``values`` in the order of training, by numpy's sort of the floats themselves."""
    lost = np.isnan(values)
    sign = -1 if direction == "easy_to_hard" else 1
    number = np.where(lost, 0, values).astype(np.float64) * sign
    end = 1 if (direction == "easy_to_hard") == (unscored == "hardest") else -1
    return np.lexsort((row_hashes(rows, SEED), number, lost * end))


def cut_blocks(values: np.ndarray, size: int, **policy: str) -> list[tuple[Rows, np.ndarray]]:
    keys = score_keys(values, **{"direction": "easy_to_hard", "unscored": "hardest"} | policy)  # type: ignore[arg-type]
    return [(start, keys[start : start + size]) for start in range(0, len(keys), size)]


def ranks_for(num_rows: int) -> list[int]:
    """Edges, neighbours, one twice, and about 200 between."""
    between = [index * num_rows // 200 for index in range(1, 200)]
    return sorted([0, 1, num_rows // 3, num_rows // 3, num_rows - 1, num_rows, num_rows + 5, *between])


def assert_exact(levels: Levels, blocks: Blocks, order: np.ndarray, ranks: list[int]) -> None:
    """Each row has the level that its place in ``order`` gives it."""
    expected = np.empty(len(order), np.int64)
    expected[order] = np.searchsorted(ranks, np.arange(len(order)), side="right")
    found = np.concatenate([levels.of(keys, rows) for rows, keys in blocks()])
    assert np.array_equal(found, expected)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("num_rows", [1, 2, 17, 10_000, 200_000])
def test_the_same_rows_lie_below_as_in_numpys_sort(kind: str, num_rows: int) -> None:
    values = confidence(kind, num_rows)
    for direction, unscored in (
        ("easy_to_hard", "hardest"),
        ("hard_to_easy", "hardest"),
        ("easy_to_hard", "easiest"),
    ):
        policy = {"direction": direction, "unscored": unscored}
        blocks = cut_blocks(values, 8192, **policy)
        levels = select(partial(list, blocks), ranks_for(num_rows), seed=SEED)
        order = sorted_rows(values, np.arange(num_rows), **policy)
        assert_exact(levels, partial(list, blocks), order, ranks_for(num_rows))
        if kind not in ("nans", "extremes"):
            break


def test_a_million_rows_in_time() -> None:
    values = confidence("ties", 1_000_000)
    blocks = cut_blocks(values, 8192)
    started = time.process_time()
    levels = select(lambda: blocks, ranks_for(len(values)), seed=SEED)
    counts = count_levels(levels, lambda: blocks)
    assert time.process_time() - started < 3  # 0.1 s on one core
    assert np.diff(
        np.clip(ranks_for(len(values)), 0, len(values)), prepend=0, append=len(values)
    ).tolist() == (counts.sum(axis=0).tolist())
    assert_exact(levels, lambda: blocks, sorted_rows(values, np.arange(len(values))), ranks_for(len(values)))


@pytest.mark.parametrize("kind", ["ties", "constant", "integers"])
def test_thresholds_do_not_depend_on_how_rows_are_cut_or_ordered(kind: str) -> None:
    values = confidence(kind, 3 * CHUNK + 7)
    keys = cut_blocks(values, len(values))[0][1]
    ranks = ranks_for(len(values))
    whole = select(lambda: [(0, keys)], ranks, seed=SEED)
    shuffled = np.random.default_rng(0).permutation(len(values))
    single_rows = [(int(row), keys[row : row + 1]) for row in shuffled[:500]]
    others = [
        cut_blocks(values, 1000),
        cut_blocks(values, CHUNK + 1),
        [(shuffled, keys[shuffled])],
        [*single_rows, (shuffled[500:], keys[shuffled[500:]]), (5, keys[:0])],
    ]
    for blocks in others:
        same = select(partial(list, blocks), ranks, seed=SEED)
        assert np.array_equal(same.scores, whole.scores)
        assert np.array_equal(same.hashes, whole.hashes)
    other_seed = select(lambda: [(0, keys)], ranks, seed=SEED + 1)
    assert not np.array_equal(other_seed.hashes, whole.hashes), "ties are broken by the seed"


class Lockstep:
    """The sum over threads, as a collective does it: all must come, with one shape; it sums in place."""

    def __init__(self, size: int) -> None:
        self.barrier = threading.Barrier(size, timeout=20)  # breaks instead of hanging
        self.given: list[np.ndarray | None] = [None] * size
        self.shapes: list[list[tuple[int, ...]]] = [[] for _ in range(size)]

    def reduce_of(self, rank: int) -> Callable[[np.ndarray], np.ndarray]:
        def reduce(counts: np.ndarray) -> np.ndarray:
            assert counts.dtype == np.int64
            self.shapes[rank].append(counts.shape)
            self.given[rank] = counts.copy()
            self.barrier.wait()
            counts[:] = np.sum([given for given in self.given if given is not None], axis=0)
            self.barrier.wait()
            return counts

        return reduce


@pytest.mark.parametrize("size", [1, 2, 3, 5])
@pytest.mark.parametrize("kind", ["ties", "integers", "constant", "nans"])
def test_processes_agree_in_lockstep(kind: str, size: int) -> None:
    values = confidence(kind, 30_000)
    blocks = cut_blocks(values, 8192)  # four: of five processes one has none
    ranks = ranks_for(len(values))
    lockstep = Lockstep(size)

    def process(rank: int) -> Levels:
        return select(lambda: blocks[rank::size], ranks, seed=SEED, reduce=lockstep.reduce_of(rank))

    with ThreadPoolExecutor(size) as pool:
        found = list(pool.map(process, range(size)))
    alone = select(lambda: blocks, ranks, seed=SEED)
    for levels in found:
        assert np.array_equal(levels.scores, alone.scores)
        assert np.array_equal(levels.hashes, alone.hashes)
    assert len(lockstep.shapes[0]) > 1
    assert all(shapes == lockstep.shapes[0] for shapes in lockstep.shapes)
    assert_exact(alone, lambda: blocks, sorted_rows(values, np.arange(len(values))), ranks)


@pytest.mark.parametrize("kind", ["ties", "constant"])
def test_rows_kept_in_memory_change_nothing_but_the_reading(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = confidence(kind, 50_000)
    blocks, ranks = cut_blocks(values, 8192), ranks_for(50_000)
    passes: list[int] = []

    def counted() -> list[tuple[Rows, np.ndarray]]:
        passes.append(1)
        return blocks

    kept = select(counted, ranks, seed=SEED)
    assert len(passes) == 2, "the whole, then what the first digit leaves in question"
    monkeypatch.setattr(selection, "KEEP_ROWS", 0)
    passes.clear()
    read_again = select(counted, ranks, seed=SEED)
    assert len(passes) > 2
    assert np.array_equal(kept.scores, read_again.scores)
    assert np.array_equal(kept.hashes, read_again.hashes)


def test_ranks_at_and_beyond_the_edges() -> None:
    blocks = cut_blocks(confidence("nans", 1000), 100)
    levels = select(lambda: blocks, [0, 0, 1000, 10**12], seed=SEED)
    assert levels.scores.tolist() == [0, 0, ABOVE_ALL, ABOVE_ALL]
    assert not levels.hashes.any()
    assert count_levels(levels, lambda: blocks).sum(axis=0).tolist() == [0, 0, 1000, 0, 0]
    assert len(select(lambda: blocks, [], seed=SEED).scores) == 0
    nothing = select(list, [0, 1], seed=SEED)
    assert nothing.scores.tolist() == [0, ABOVE_ALL]
    for ranks in ([2, 1], [-1]):
        with pytest.raises(AssertionError, match="ascend"):
            select(lambda: blocks, ranks, seed=SEED)


def test_groups_are_ranked_apart_by_blocks_of_their_rows() -> None:
    values = confidence("integers", 20_000)
    groups = np.random.default_rng(1).integers(0, 3, len(values))
    groups[:1000] = 0  # blocks of a single class, and blocks without a row of one
    blocks = cut_blocks(values, 500)
    for group in range(3):

        def of_group(group: int = group) -> list[tuple[Rows, np.ndarray]]:
            found: list[tuple[Rows, np.ndarray]] = []
            for start, keys in blocks:
                inside = np.flatnonzero(groups[start : start + len(keys)] == group)
                found.append((start + inside, keys[inside]))
            return found

        members = np.flatnonzero(groups == group)
        ranks = ranks_for(len(members))
        levels = select(of_group, ranks, seed=SEED)
        assert_exact(levels, of_group, sorted_rows(values[members], members), ranks)


def test_rows_whose_hashes_differ_in_their_last_bits_only() -> None:
    numbers = [row_of_hash((0xABCDEF << 40) + value, SEED) for value in range(400)]
    rows = np.array([row for row in numbers if row < 1 << 63], np.int64)
    assert 100 < len(rows) < 300
    values = np.zeros(len(rows), np.float32)
    keys = score_keys(values, direction="easy_to_hard", unscored="hardest")
    ranks = list(range(len(rows)))
    levels = select(lambda: [(rows, keys)], ranks, seed=SEED)
    assert_exact(levels, lambda: [(rows, keys)], sorted_rows(values, rows), ranks)


def test_a_row_dealt_twice_is_noticed() -> None:
    keys = np.zeros(2, np.uint32)
    with pytest.raises(AssertionError, match="twice"):
        select(lambda: [(np.array([7, 7]), keys)], [1], seed=SEED)

"""Levels against their definition: the number of thresholds at or below a row's (key, hash)."""

from __future__ import annotations

import bisect
from itertools import pairwise

import numpy as np
import pytest

from distill_dist.curriculum import levels as levels_module
from distill_dist.curriculum.keys import ABOVE_ALL, row_hashes
from distill_dist.curriculum.levels import CHUNK, FEW, Levels, Rows, count_levels

SEED = 5


def by_definition(levels: Levels, keys: np.ndarray, rows: np.ndarray) -> list[int]:
    thresholds = list(zip(levels.scores.tolist(), levels.hashes.tolist(), strict=True))
    found = zip(keys.tolist(), row_hashes(rows, levels.seed).tolist(), strict=True)
    return [bisect.bisect_right(thresholds, row) for row in found]


def levels_at(pairs: list[tuple[int, int]]) -> Levels:
    pairs = sorted(pairs)
    return Levels(
        np.array([score for score, _ in pairs], np.uint32), np.array([h for _, h in pairs], np.uint64), SEED
    )


def keys_of(kind: str, num_rows: int) -> np.ndarray:
    rng = np.random.default_rng(num_rows)
    return {
        "any": lambda: rng.integers(0, ABOVE_ALL, num_rows, dtype=np.uint32),
        "floats": lambda: rng.random(num_rows, dtype=np.float32).view(np.uint32).copy(),
        "integers": lambda: rng.integers(0, 100, num_rows).astype(np.float32).view(np.uint32),
        "constant": lambda: np.zeros(num_rows, np.uint32),
        "neighbours": lambda: rng.integers(0x3F7FFFF0, 0x3F800010, num_rows, dtype=np.uint32),
    }[kind]()


def thresholds_near(keys: np.ndarray, rows: np.ndarray, rng: np.random.Generator) -> list[tuple[int, int]]:
    """Edges of everything, rows themselves, one beside them by hash and by key, bare keys, and some twice."""
    pairs = [(0, 0), (0, 0), (0, 1), (ABOVE_ALL, 0), (ABOVE_ALL, 2**64 - 1)]
    for place in rng.integers(0, len(keys), 40).tolist():
        key, value = int(keys[place]), int(row_hashes(rows[place : place + 1], SEED)[0])
        pairs += [(key, value), (key, max(value - 1, 0)), (key, min(value + 1, 2**64 - 1)), (key, 0)]
        pairs += [(key, value), (key + 1, 0), (max(key - 1, 0), 2**64 - 1), (key, value >> 40 << 40)]
    return pairs


@pytest.mark.parametrize("kind", ["any", "floats", "integers", "constant", "neighbours"])
@pytest.mark.parametrize("num_rows", [1, 17, 3000, 2 * CHUNK + 5])
@pytest.mark.parametrize("few", [0, 1 << 30], ids=["tables", "search"])
def test_levels_are_those_of_the_definition(
    kind: str, num_rows: int, few: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(levels_module, "FEW", few)
    keys, first = keys_of(kind, num_rows), 1000
    rows = np.arange(first, first + num_rows)
    levels = levels_at(thresholds_near(keys, rows, np.random.default_rng(1)))
    expected = by_definition(levels, keys, rows)
    assert levels.of(keys, first).tolist() == expected
    assert levels.of(keys, rows).tolist() == expected
    shuffled = np.random.default_rng(2).permutation(num_rows)
    assert levels.of(keys[shuffled], rows[shuffled]).tolist() == [expected[place] for place in shuffled]
    assert ("tables" in levels.__dict__) == (few == 0), "the path that this case is about"


@pytest.mark.parametrize("few", [0, 1 << 30], ids=["tables", "search"])
def test_many_thresholds_and_none(few: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(levels_module, "FEW", few)
    rng = np.random.default_rng(0)
    keys = np.concatenate([keys_of("floats", 2000), keys_of("constant", 2000)])
    pairs = [(int(keys[place % 4000]), int(h)) for place, h in enumerate(rng.integers(0, 2**63, 20_000))]
    levels = levels_at(pairs)
    assert levels.of(keys, 0).tolist() == by_definition(levels, keys, np.arange(4000))
    assert not levels_at([]).of(keys, 0).any()
    assert levels.of(keys[:0], 0).shape == (0,)


def test_only_rows_that_tie_with_a_threshold_are_hashed(monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[int] = []

    def counting(rows: np.ndarray, seed: int) -> np.ndarray:
        hashed.extend(rows.tolist())
        return row_hashes(rows, seed)

    monkeypatch.setattr(levels_module, "row_hashes", counting)
    keys = np.arange(2 * FEW, dtype=np.uint32)
    levels_at([(5, 0), (FEW, 0)]).of(keys, 0)
    assert hashed == []
    for few in (FEW, 1 << 30):
        hashed.clear()
        monkeypatch.setattr(levels_module, "FEW", few)
        levels_at([(5, 1 << 63), (FEW, 0)]).of(keys, 100)
        assert hashed == [105]


@pytest.mark.parametrize("pairs", [[(2, 0), (1, 0)], [(1, 5), (1, 4)]])
def test_thresholds_that_do_not_ascend_are_refused(pairs: list[tuple[int, int]]) -> None:
    scores, hashes = np.array(pairs).T
    with pytest.raises(AssertionError, match="ascend"):
        Levels(scores.astype(np.uint32), hashes.astype(np.uint64), SEED)


def test_counts_per_block_whatever_the_blocks() -> None:
    keys = keys_of("integers", 5000)
    levels = levels_at(thresholds_near(keys, np.arange(5000), np.random.default_rng(1)))
    whole = levels.of(keys, 0)
    edges = [0, 0, 1, 2, 900, 900, 5000]
    pieces = list(pairwise(edges))

    def blocks() -> list[tuple[Rows, np.ndarray]]:
        return [(start if start % 2 else np.arange(start, end), keys[start:end]) for start, end in pieces]

    counts = count_levels(levels, blocks)
    assert counts.dtype == np.int64
    assert counts.shape == (len(pieces), len(levels.scores) + 1)
    for (start, end), of_block in zip(pieces, counts, strict=True):
        assert of_block.tolist() == [
            np.count_nonzero(whole[start:end] == level) for level in range(counts.shape[1])
        ]
    assert count_levels(levels, list).shape == (0, len(levels.scores) + 1)

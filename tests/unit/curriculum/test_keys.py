"""Keys in the order of the floats, NaNs where they are sent; hashes that are a seeded bijection."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from distill_dist.curriculum.keys import ABOVE_ALL, row_hashes, score_keys

MASK = (1 << 64) - 1
TINY = float(np.finfo(np.float32).smallest_subnormal)
NUMBERS = [
    -np.inf,
    -3.4e38,
    -1.0,
    -1.2e-38,
    -TINY,
    -0.0,
    0.0,
    TINY,
    1.2e-38,
    0.5,
    1 - 2**-24,
    1.0,
    3.4e38,
    np.inf,
]
NANS = np.array([0x7FC00000, 0xFFC00000, 0x7F800001, 0xFFFFFFFF], np.uint32).view(np.float32)


class SplitMix64:
    """Vigna's reference, in Python's integers."""

    def __init__(self, state: int) -> None:
        self.state = state & MASK

    def next(self) -> int:
        self.state = (self.state + 0x9E3779B97F4A7C15) & MASK
        value = self.state
        value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & MASK
        return value ^ (value >> 31)


def row_of_hash(value: int, seed: int) -> int:
    """The number in [0, 2**64) whose hash ``value`` is: every step of the hash undone."""
    for shift, multiplier in ((31, 0x94D049BB133111EB), (27, 0xBF58476D1CE4E5B9), (30, 1)):
        shifted = value
        for _ in range(64 // shift):
            shifted = value ^ (shifted >> shift)
        value = (shifted * pow(multiplier, -1, 1 << 64)) & MASK
    state = SplitMix64(SplitMix64(seed).next()).state
    return ((value - state) * pow(0x9E3779B97F4A7C15, -1, 1 << 64) - 1) & MASK


@pytest.mark.parametrize("direction", ["easy_to_hard", "hard_to_easy"])
@pytest.mark.parametrize("unscored", ["hardest", "easiest"])
def test_every_pair_of_special_numbers_stands_as_the_floats_do(direction: str, unscored: str) -> None:
    values = np.concatenate([np.array(NUMBERS, np.float32), NANS])
    keys = score_keys(values, direction=direction, unscored=unscored)  # type: ignore[arg-type]
    assert keys.dtype == np.uint32
    assert keys.max() < ABOVE_ALL
    numbers, nans = keys[: len(NUMBERS)].tolist(), keys[len(NUMBERS) :]
    for (a, key_a), (b, key_b) in itertools.product(zip(NUMBERS, numbers, strict=True), repeat=2):
        first = a > b if direction == "easy_to_hard" else a < b
        assert (key_a < key_b) == first, (a, b)
    assert len(set(nans.tolist())) == 1
    if (direction == "easy_to_hard") == (unscored == "hardest"):
        assert nans[0] > max(numbers)
    else:
        assert nans[0] < min(numbers)


@pytest.mark.parametrize("value", NANS)
def test_one_nan_among_probabilities_whatever_its_bits(value: np.float32) -> None:
    values = np.array([0.25, value, 0.5], np.float32)
    assert np.argsort(score_keys(values, direction="easy_to_hard", unscored="hardest")).tolist() == [2, 0, 1]
    assert np.argsort(score_keys(values, direction="easy_to_hard", unscored="easiest")).tolist() == [1, 2, 0]


@pytest.mark.parametrize("signs", ["both", "positive"])
@pytest.mark.parametrize("direction", ["easy_to_hard", "hard_to_easy"])
def test_random_bits_stand_as_the_floats_do(direction: str, signs: str) -> None:
    bits = np.random.default_rng(0).integers(
        0, 1 << 32 if signs == "both" else 1 << 31, 100_000, dtype=np.uint32
    )
    values = bits.view(np.float32)
    assert np.isnan(values).any()
    values = values[~np.isnan(values)]
    before = values.copy()
    keys = score_keys(values, direction=direction, unscored="hardest")  # type: ignore[arg-type]
    assert np.array_equal(values, before), "the argument is not changed"
    ordered = values[np.argsort(keys, kind="stable")]
    assert (np.diff(ordered) <= 0 if direction == "easy_to_hard" else np.diff(ordered) >= 0).all()
    assert len(np.unique(keys)) == len(np.unique(values)), "no two numbers share a key"


def test_directions_are_mirrors_but_for_the_unscored() -> None:
    values = np.array([0.1, np.nan, 0.7], np.float32)
    easy = score_keys(values, direction="easy_to_hard", unscored="hardest")
    hard = score_keys(values, direction="hard_to_easy", unscored="hardest")
    assert np.argsort(easy).tolist() == [2, 0, 1]
    assert np.argsort(hard).tolist() == [1, 0, 2]


def test_a_part_of_an_array_and_an_empty_one() -> None:
    values = np.arange(20, dtype=np.float32).reshape(10, 2)[:, 1]
    keys = score_keys(values, direction="hard_to_easy", unscored="easiest")
    assert np.array_equal(np.argsort(keys), np.arange(10))
    assert score_keys(values[:0], direction="hard_to_easy", unscored="easiest").shape == (0,)
    with pytest.raises(AssertionError):
        score_keys(values.astype(np.float64), direction="hard_to_easy", unscored="easiest")


@pytest.mark.parametrize("seed", [0, 1, -5, 1234567, 2**70 + 3])
def test_hashes_are_the_outputs_of_splitmix64(seed: int) -> None:
    reference = SplitMix64(1234567)  # its published outputs, so that the reference is one
    assert [reference.next() for _ in range(3)] == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
    ]
    generator = SplitMix64(SplitMix64(seed).next())
    rows = np.arange(1000)
    hashes = row_hashes(rows, seed)
    assert hashes.dtype == np.uint64
    assert hashes.tolist() == [generator.next() for _ in range(1000)]
    assert np.array_equal(rows, np.arange(1000)), "the argument is not changed"
    assert np.array_equal(row_hashes(rows[[999, 3]], seed), hashes[[999, 3]])


def test_hashes_can_be_undone_so_none_come_twice() -> None:
    rows = [0, 1, 2, 10**9, 2**40 + 7, 2**63 - 1]
    for seed in (0, 77):
        for row, value in zip(rows, row_hashes(np.array(rows), seed).tolist(), strict=True):
            assert row_of_hash(value, seed) == row


def test_ties_are_broken_without_a_trace_of_ids_or_of_the_next_seed() -> None:
    rows = np.arange(100_000)
    orders = [np.argsort(np.argsort(row_hashes(rows, seed))) for seed in (0, 1)]
    # the correlation of two random orders has deviation 1 / √N; 5 of them
    bound = 5 / np.sqrt(len(rows))
    assert abs(np.corrcoef(orders[0], rows)[0, 1]) < bound
    assert abs(np.corrcoef(orders[0], orders[1])[0, 1]) < bound
    for shift in (0, 32, 56):  # each byte's counts: Pearson's statistic has mean 255, deviation √510
        counts = np.bincount(
            ((row_hashes(rows, 0) >> np.uint64(shift)) & np.uint64(255)).astype(int), minlength=256
        )
        expected = len(rows) / 256
        assert abs(((counts - expected) ** 2 / expected).sum() - 255) < 5 * np.sqrt(510)

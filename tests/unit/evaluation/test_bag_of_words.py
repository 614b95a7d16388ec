from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from distill_dist.evaluation.bag_of_words import bag_of_words_accuracy


@dataclass(frozen=True)
class Row:
    input_ids: np.ndarray
    token_type_ids: np.ndarray
    label: int


def row(first: list[int], second: list[int], label: int) -> Row:
    return Row(np.array(first + second), np.array([0] * len(first) + [1] * len(second)), label)


def words(rng: np.random.Generator, length: int) -> list[int]:
    return rng.integers(5, 25, size=length).tolist()


def test_a_word_that_tells_the_label_is_found() -> None:
    rng = np.random.default_rng(0)
    # Word 3 stands in every row; only its segment tells.
    rows = [
        row([*words(rng, 4), *([3] * (n % 2))], [*words(rng, 4), *([3] * (1 - n % 2))], n % 2)
        for n in range(300)
    ]
    assert bag_of_words_accuracy(rows[:200], rows[200:]) == 1.0


def test_overlap_is_seen() -> None:
    rng = np.random.default_rng(0)
    rows = []
    for n in range(1200):
        first = rng.permutation(20)[:4] + 5
        second = first if n % 2 else np.roll(np.setdiff1d(np.arange(5, 25), first), int(rng.integers(16)))[:4]
        rows.append(row(first.tolist(), second.tolist(), n % 2))
    assert bag_of_words_accuracy(rows[:1000], rows[1000:]) == 1.0


def test_order_is_not_seen() -> None:
    rng = np.random.default_rng(0)
    rows = []
    for n in range(1500):
        first = sorted(rng.permutation(20)[:5].tolist())
        rows.append(row(first if n % 2 else first[::-1], words(rng, 3), n % 2))
    # Chance, within 4 standard deviations of 500 coin flips.
    assert abs(bag_of_words_accuracy(rows[:1000], rows[1000:]) - 0.5) < 4 * 0.5 / 500**0.5


def test_rows_of_one_segment_and_words_that_train_never_had() -> None:
    rows = [row([5 + n % 2, 9], [], n % 2) for n in range(40)]
    unseen = [row([5 + n % 2, 400], [], n % 2) for n in range(10)]
    assert bag_of_words_accuracy(rows, unseen) == 1.0


def test_every_class_counts() -> None:
    rows = [row([5 + n % 3], [9], n % 3) for n in range(90)]
    wrong = [row([5 + n % 3], [9], (n + (n % 3 == 2)) % 3) for n in range(30)]
    assert bag_of_words_accuracy(rows, rows) == 1.0
    assert bag_of_words_accuracy(rows, wrong) == 20 / 30

from __future__ import annotations

import numpy as np
import pytest

from distill_dist.evaluation.perturb import Kind, Perturbation

CLS, SEP = 2, 3
SPECIAL, WORDS = np.array([0, CLS, SEP]), np.arange(5, 1000)


def make(kind: Kind, rate: float = 0.2, seed: int = 0) -> Perturbation:
    return Perturbation(kind, rate, seed, SPECIAL, WORDS)


def row(number: int, first: int = 10, second: int = 8) -> tuple[np.ndarray, np.ndarray]:
    words = np.random.default_rng(number).integers(5, 1000, first + second)
    ids = np.array([CLS, *words[:first], SEP, *words[first:], SEP])
    return ids, np.array([0] * (first + 2) + [1] * (second + 1))


MANY = [row(number) for number in range(300)]


@pytest.mark.parametrize("kind", ["delete", "replace"])
def test_the_rate_is_the_share_of_words_touched(kind: Kind) -> None:
    """5400 words: 3 standard deviations of the share are 0.016. Nothing special is ever touched."""
    touched = 0
    for ids, types in MANY:
        found, found_types = make(kind)(ids, types)
        assert len(found) == len(found_types)
        assert [token for token in found if token in (CLS, SEP)] == [CLS, SEP, SEP]
        assert found[0] == CLS
        assert found[-1] == SEP
        touched += len(ids) - len(found) if kind == "delete" else int((found != ids).sum())
    assert 0.184 < touched / (18 * len(MANY)) < 0.216


def test_deletion_keeps_order_and_segments() -> None:
    for ids, types in MANY[:50]:
        found, found_types = make("delete", rate=0.5)(ids, types)
        pairs = iter(zip(ids, types, strict=True))
        assert all(pair in pairs for pair in zip(found, found_types, strict=True)), "a subsequence"


def test_no_text_vanishes() -> None:
    for ids, types in MANY[:20]:
        found, found_types = make("delete", rate=1.0)(ids, types)
        assert len(found) == 5
        assert found_types.tolist() == [0, 0, 0, 1, 1]


def test_replacements_come_from_all_words() -> None:
    drawn = np.concatenate([make("replace", rate=1.0)(ids, types)[0] for ids, types in MANY])
    drawn = drawn[~np.isin(drawn, SPECIAL)]
    assert set(drawn) <= set(WORDS)
    # 5400 draws of 995 words miss a word with e^−5.4
    assert len(set(drawn)) > 0.98 * len(WORDS)


@pytest.mark.parametrize("kind", ["delete", "replace"])
def test_a_function_of_seed_and_content_alone(kind: Kind) -> None:
    ids, types = row(1)
    first = make(kind)(ids, types)[0]
    assert np.array_equal(make(kind)(ids.copy(), types.copy())[0], first)
    assert not np.array_equal(make(kind, seed=1)(ids, types)[0], first)
    changed = ids.copy()
    changed[1] += 1
    other = make(kind)(changed, types)[0]
    # the whole row counts, so other places are drawn, and not only at the changed one
    assert other[2:].tolist() != first[2:].tolist()


def test_known_draws_stay() -> None:
    """Figures of earlier evaluations must stay comparable: these are of the first version."""
    ids, types = KNOWN, np.array([0] * 8 + [1] * 9)
    assert make("delete")(ids, types)[0].tolist() == DELETED
    assert make("replace")(ids, types)[0].tolist() == REPLACED


KNOWN = np.array([CLS, *range(100, 106), SEP, *range(200, 208), SEP])
DELETED = [2, 101, 102, 103, 104, 105, 3, 200, 201, 202, 203, 204, 205, 206, 3]
REPLACED = [2, 522, 101, 102, 103, 104, 105, 3, 200, 201, 202, 203, 204, 205, 206, 754, 3]


def test_both_kinds_touch_the_same_words_and_a_larger_rate_touches_more() -> None:
    for ids, types in MANY[:50]:
        gone = set(ids) - set(make("delete", 0.2)(ids, types)[0])
        changed = set(ids[make("replace", 0.2)(ids, types)[0] != ids])
        assert gone <= changed | {SEP}
        assert changed <= set(ids[make("replace", 0.6)(ids, types)[0] != ids])


def test_a_row_without_words_stays() -> None:
    ids, types = np.array([CLS, SEP, SEP]), np.array([0, 0, 1])
    for kind in ("delete", "replace"):
        assert make(kind, rate=1.0)(ids, types)[0].tolist() == ids.tolist()

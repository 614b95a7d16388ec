"""Rows of the generated inference corpus: premise, hypothesis, label by construction, known difficulty.

A hypothesis is its premise with ``difficulty`` slots edited, each once. The label is decided over all worlds
(:mod:`distill_dist.data.synthetic_logic`), so no chain of edits can mislabel a row.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, TypeVar

import numpy as np

from distill_dist.config.schema_data import SyntheticConfig
from distill_dist.data.synthetic_grammar import (
    COLOURS,
    MOTIONS,
    NOUNS,
    PLACES,
    QUANTIFIERS,
    SIZES,
    SOUNDS,
    Sentence,
    Tree,
    all_words,
)
from distill_dist.data.synthetic_logic import extension, label_of
from distill_dist.data.synthetic_tokenizer import build_tokenizer
from distill_dist.errors import UserError

__all__ = ["LABELS", "SyntheticRow", "build_tokenizer", "generate", "vocabulary"]

LABELS = ("entailment", "neutral", "contradiction")
SPLITS = ("train", "dev")

# One pair of texts in so many belongs to dev, by its hash; the others to train.
DEV_SHARE = 8
# Words drawn for one pair of quantifiers before another pair is tried, and pairs before we give up.
DRAWS_PER_PAIR = 40
MOST_PAIRS_PER_ROW = 1000

# Quantifiers of premises, as often as they stand here. After `all` every label is possible, so there they tell
# least: with all five alike, quantifiers alone give 60 % of the labels, so 47 %.
PREMISE_QUANTIFIERS = ("all",) * 20 + ("some",) * 8 + ("no",) * 6 + ("not all",) * 3 + ("some not",) * 3
# Premise quantifier -> hypothesis quantifier -> labels that words can bring about (the logic's tests agree).
POSSIBLE = {
    "all": {"all": "enc", "some": "enc", "no": "enc", "not all": "enc"},
    "some": {"all": "nc", "some": "en", "no": "nc", "not all": "en"},
    "no": {"all": "nc", "some": "nc", "no": "en", "not all": "en"},
    "not all": {"all": "nc", "some": "", "no": "", "not all": "en"},  # only neutral: left out
}

# Main verb's tree, as often as it stands here: 0 a motion with sounds in the clause, 1 the reverse. Half and half,
# two of three seeds of a small model were still below 0.87 after 160,000 rows.
VERB_TREES = (0, 0, 1)
# How often a premise has the modifier: short sentences, all forms.
MODIFIED_SHARE = {"adjective": 0.5, "clause": 0.5, "place": 0.5}

T = TypeVar("T")


@dataclass(frozen=True)
class SyntheticRow:
    """One pair. ``label`` differs from ``clean_label`` where label noise hit; ``difficulty`` counts edits."""

    premise: str
    hypothesis: str
    label: str
    clean_label: str
    difficulty: int


class _Draws:
    """Uniform draws from a counter-based stream: the same on every platform and numpy version."""

    def __init__(self, seed: int, stream: int) -> None:
        self._rng = np.random.Generator(np.random.Philox(key=[seed, stream]))
        self._block: list[float] = []

    def uniform(self) -> float:
        """In [0, 1). Drawn in blocks: a numpy call per number would cost 20 times as much."""
        if not self._block:
            self._block = self._rng.random(1 << 14).tolist()
        return self._block.pop()

    def choice(self, values: Sequence[T]) -> T:
        """One of ``values``."""
        return values[int(self.uniform() * len(values))]

    def permutation(self, length: int) -> np.ndarray:
        """A random order of range(length), int64."""
        return np.argsort(self._rng.random(length), kind="stable")


def vocabulary() -> list[str]:
    """Every word of the corpus, once."""
    return all_words()


def _options(*trees: Tree) -> tuple[str, ...]:
    return tuple(word for tree in trees for word in tree)


# (main verb's tree, slot) -> the words that may stand there. The clause's verb comes from the other tree.
_OPTIONS: dict[tuple[int, str], tuple[str, ...]] = {
    (verbs, slot): options
    for verbs in (0, 1)
    for slot, options in {
        "adjective": _options(SIZES, COLOURS),
        "noun": _options(NOUNS),
        "clause": _options((SOUNDS, MOTIONS)[verbs]),
        "verb": _options((MOTIONS, SOUNDS)[verbs]),
        "place": _options(PLACES),
    }.items()
}
WORD_SLOTS = ("adjective", "noun", "clause", "verb", "place")
SLOTS = ("quantifier", *WORD_SLOTS)


@cache
def _replacements(slot: str, value: str, options: tuple[str, ...]) -> tuple[tuple[str | None, ...], ...]:
    """What may replace ``value``, grouped by the relation to it: wider, narrower, neither.

    A modifier may also be dropped, which is wider. Empty groups are left out.
    """
    others = [word for word in options if word != value]
    here = {word: extension(word) for word in options}
    wider: list[str | None] = [w for w in others if here[w] & here[value] == here[value]]
    narrower = [w for w in others if here[w] & here[value] == here[w]]
    neither = [w for w in others if w not in wider and w not in narrower]
    if slot in MODIFIED_SHARE:
        wider.append(None)
    return tuple(tuple(group) for group in (wider, narrower, neither) if group)


def _draw_quantifiers(draws: _Draws, label: str, num_edits: int) -> tuple[str, str]:
    """Quantifiers of premise and hypothesis that leave ``label`` possible; a change counts as an edit."""
    while True:
        first = second = draws.choice(PREMISE_QUANTIFIERS)
        if draws.uniform() < num_edits / len(SLOTS):
            second = draws.choice([quantifier for quantifier in QUANTIFIERS if quantifier != first])
        rows, columns = (q.replace("some not", "not all") for q in (first, second))
        if label[0] in POSSIBLE[rows][columns]:
            return first, second


def _draw_pair(draws: _Draws, quantifiers: tuple[str, str], num_edits: int) -> tuple[Sentence, Sentence]:
    """A premise, and a hypothesis that differs from it in ``num_edits`` slots, the quantifier included."""
    verbs = draws.choice(VERB_TREES)
    words: dict[str, str | None] = {}
    for slot in WORD_SLOTS:
        present = draws.uniform() < MODIFIED_SHARE.get(slot, 1.0)
        words[slot] = draws.choice(_OPTIONS[verbs, slot]) if present else None
    edited, untouched = dict(words), list(WORD_SLOTS)
    for _ in range(num_edits - (quantifiers[0] != quantifiers[1])):
        slot = untouched.pop(int(draws.uniform() * len(untouched)))
        edited[slot] = _edit(draws, slot, words[slot], _OPTIONS[verbs, slot])
    first: dict[str, Any] = words
    second: dict[str, Any] = edited
    return Sentence(quantifiers[0], **first), Sentence(quantifiers[1], **second)


def _edit(draws: _Draws, slot: str, value: str | None, options: tuple[str, ...]) -> str | None:
    """Another value for ``slot``; the relation is drawn first, so that wider and narrower are as frequent."""
    if value is None:
        return draws.choice(options)
    return draws.choice(draws.choice(_replacements(slot, value, options)))


def _split_of(premise: str, hypothesis: str) -> str:
    """The split that a pair belongs to, whatever the seed: so no pair can stand in both."""
    digest = hashlib.blake2b(f"{premise}\t{hypothesis}".encode(), digest_size=4).digest()
    return "dev" if int.from_bytes(digest, "big") % DEV_SHARE == 0 else "train"


def _clean_rows(config: SyntheticConfig, split: str, num_rows: int) -> Iterator[SyntheticRow]:
    """Rows without noise: labels in turn, difficulties in turn, so any prefix is balanced."""
    draws = _Draws(config.seed, SPLITS.index(split))
    seen: set[tuple[str, str]] = set()
    for number in range(num_rows):
        label = LABELS[number % len(LABELS)]
        difficulty = 1 + number // len(LABELS) % config.max_steps
        texts = _new_pair(draws, split, label, difficulty, seen)
        if texts is None:
            raise UserError(
                f"data.synthetic.{split}_rows: {num_rows} asked for, but after {number} the grammar gave no "
                f"new row with label {label} and {difficulty} steps; ask for fewer rows"
            )
        seen.add(texts)
        yield SyntheticRow(*texts, label, label, difficulty)


def _new_pair(
    draws: _Draws, split: str, label: str, num_edits: int, seen: set[tuple[str, str]]
) -> tuple[str, str] | None:
    """Texts of ``split`` with ``label`` that are not in ``seen``; None when there seem to be none."""
    for _ in range(MOST_PAIRS_PER_ROW):
        quantifiers = _draw_quantifiers(draws, label, num_edits)
        for _ in range(DRAWS_PER_PAIR):
            premise, hypothesis = _draw_pair(draws, quantifiers, num_edits)
            if label_of(premise, hypothesis) != label:
                continue
            texts = (premise.text(), hypothesis.text())
            if texts not in seen and _split_of(*texts) == split:
                return texts
    return None


def generate(config: SyntheticConfig, split: str) -> Iterator[SyntheticRow]:
    """The rows of ``split`` (`train` or `dev`), a pure function of ``config``.

    The first rows are the same for every number of rows; clean labels are the same for every noise.
    UserError: an unknown split; more rows than the grammar gives.
    """
    if split not in SPLITS:
        raise UserError(f"synthetic_nli has no split {split!r}; its splits are {', '.join(SPLITS)}")
    num_rows = config.train_rows if split == "train" else config.dev_rows
    noise = _Draws(config.seed, len(SPLITS))
    num_noisy = round(config.label_noise * num_rows) if split == "train" else 0
    noisy = set(noise.permutation(num_rows)[:num_noisy].tolist())
    for number, row in enumerate(_clean_rows(config, split, num_rows)):
        if number in noisy:
            wrong = noise.choice([label for label in LABELS if label != row.clean_label])
            row = replace(row, label=wrong)
        yield row

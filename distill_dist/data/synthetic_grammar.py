"""The generated corpus' language: its words, in trees of hypernyms, and its sentences.

A sentence is a quantifier, a subject (noun with adjective and relative clause) and a predicate (verb with a
place adverb): ``some small dogs that sing do not run outdoors``. Verbs serve in clause and predicate, so that
the same words in another order mean another thing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

# child -> parent; None for a root. Words of one tree exclude each other unless one lies above the other.
Tree = Mapping[str, str | None]


def _tree(*lines: str) -> Tree:
    """A tree from lines ``parent: child child``; a line without a colon is a root alone."""
    parents: dict[str, str | None] = {}
    for line in lines:
        parent, _, children = line.partition(":")
        parents.setdefault(parent, None)
        parents.update(dict.fromkeys(children.split(), parent))
    return MappingProxyType(parents)


NOUNS = _tree("animals: dogs cats", "dogs: poodles beagles", "people")
SIZES = _tree("small: tiny", "large")
COLOURS = _tree("black")
MOTIONS = _tree("move: walk run", "run: sprint")
SOUNDS = _tree("talk: whisper", "sing")
PLACES = _tree("outdoors", "indoors: upstairs")
# Words of different trees are independent of each other.
TREES = (NOUNS, SIZES, COLOURS, MOTIONS, SOUNDS, PLACES)

# `all dogs do not run` would be ambiguous English, so only `some` takes the predicate's negation.
QUANTIFIERS = ("all", "some", "no", "not all", "some not")
FUNCTION_WORDS = ("all", "some", "no", "not", "that", "do")


def tree_of(word: str) -> Tree:
    """The tree that holds ``word``; there is one."""
    return next(tree for tree in TREES if word in tree)


def is_within(word: str | None, ancestor: str) -> bool:
    """Whether ``word`` is ``ancestor`` or lies below it: every poodle is an animal."""
    while word is not None and word != ancestor:
        word = tree_of(word)[word]
    return word == ancestor


@dataclass(frozen=True)
class Sentence:
    """One sentence, slot by slot; a modifier that is not there is None.

    ``quantifier`` is one of ``QUANTIFIERS``; ``some not`` negates the predicate. ``clause`` is a verb of the
    other tree than ``verb``'s.
    """

    quantifier: str
    adjective: str | None
    noun: str
    clause: str | None
    verb: str
    place: str | None

    def text(self) -> str:
        """The words, lower case, one space between them."""
        some_not = self.quantifier == "some not"
        parts = [
            "some" if some_not else self.quantifier,
            self.adjective,
            self.noun,
            self.clause and f"that {self.clause}",
            "do not" if some_not else None,
            self.verb,
            self.place,
        ]
        return " ".join(part for part in parts if part)


def all_words() -> list[str]:
    """Every word that a sentence can hold, once: function words, then tree by tree."""
    return [*FUNCTION_WORDS, *(word for tree in TREES for word in tree)]

"""Which label a pair of the generated corpus has: decided over all worlds, not looked up in rules.

An individual has, per word tree, one most specific true word or none. Trees are independent of each other. A
world is a set of individuals; modifiers restrict a set, `some A do not P` and `not all A P` need an A that is
not P, `some A P` one that is, `no A P` and `all A P` forbid these.

Existential import (the traditional square of opposition): only worlds count in which both sentences' subjects
exist. So `all dogs run` entails `some poodles run` and contradicts `no poodles run`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from itertools import product
from typing import NamedTuple

from distill_dist.data.synthetic_grammar import TREES, Sentence, is_within, tree_of

# A set of kinds of individuals: bit k stands for KINDS[k].
Bits = int

# Every kind of individual: one most specific word, or None, per tree of TREES.
KINDS: list[tuple[str | None, ...]] = list(product(*([None, *tree] for tree in TREES)))
EVERYTHING: Bits = (1 << len(KINDS)) - 1


class Claim(NamedTuple):
    """``exists``: somebody's kind lies in ``region``. Otherwise: nobody's does."""

    exists: bool
    region: Bits


@cache
def extension(word: str | None) -> Bits:
    """The kinds that ``word`` is true of; None restricts nothing."""
    if word is None:
        return EVERYTHING
    position = TREES.index(tree_of(word))
    return sum(1 << k for k, kind in enumerate(KINDS) if is_within(kind[position], word))


@cache
def subject_of(adjective: str | None, noun: str, clause: str | None) -> Bits:
    """The kinds that the subject is true of."""
    return extension(adjective) & extension(noun) & extension(clause)


def claim_of(sentence: Sentence) -> Claim:
    """What ``sentence`` says of the world."""
    subject = subject_of(sentence.adjective, sentence.noun, sentence.clause)
    predicate = extension(sentence.verb) & extension(sentence.place)
    if sentence.quantifier in ("all", "not all", "some not"):
        predicate ^= EVERYTHING
    return Claim(sentence.quantifier not in ("all", "no"), subject & predicate)


def consistent(claims: Sequence[Claim], subjects: Sequence[Bits]) -> bool:
    """Whether one world makes all ``claims`` true and leaves none of ``subjects`` empty.

    The largest world that obeys the universal claims holds every kind they allow; what it lacks, all lack. So
    the test is exact for worlds of every size.
    """
    allowed = EVERYTHING
    for claim in claims:
        if not claim.exists:
            allowed &= ~claim.region
    return all(allowed & subject for subject in subjects) and all(
        allowed & claim.region for claim in claims if claim.exists
    )


def label_of(premise: Sentence, hypothesis: Sentence) -> str:
    """`entailment`, `contradiction` or `neutral`, over all worlds in which both subjects exist."""
    first, second = claim_of(premise), claim_of(hypothesis)
    subjects = [subject_of(s.adjective, s.noun, s.clause) for s in (premise, hypothesis)]
    if not consistent((first, Claim(not second.exists, second.region)), subjects):
        return "entailment"
    return "neutral" if consistent((first, second), subjects) else "contradiction"

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from itertools import chain, combinations, islice, product
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from distill_dist.config.schema_data import SyntheticConfig
from distill_dist.data import synthetic_nli
from distill_dist.data.synthetic_grammar import (
    PLACES,
    QUANTIFIERS,
    TREES,
    Sentence,
    is_within,
    tree_of,
)
from distill_dist.data.synthetic_logic import label_of
from distill_dist.data.synthetic_nli import LABELS, SyntheticRow, build_tokenizer, generate, vocabulary
from distill_dist.errors import UserError

SMALL = SyntheticConfig(train_rows=360, dev_rows=180)


def rows_of(split: str = "train", **changes: object) -> list[SyntheticRow]:
    return list(generate(replace(SMALL, **changes), split))  # type: ignore[arg-type]


# --- labels, against an evaluator of texts that shares nothing with the generator's logic ---


def parse(text: str) -> Sentence:
    """The sentence that ``text`` was made from; every word's tree tells its slot."""
    words = text.split()
    quantifier = "not all" if words[:2] == ["not", "all"] else words[0]
    rest = words[len(quantifier.split()) :]
    adjective = rest.pop(0) if rest[0] in {*TREES[1], *TREES[2]} else None
    noun, clause = rest.pop(0), None
    if rest[0] == "that":
        clause, rest = rest[1], rest[2:]
    if rest[:2] == ["do", "not"]:
        quantifier, rest = f"{quantifier} not", rest[2:]
    place = rest[1] if len(rest) > 1 else None
    return Sentence(quantifier, adjective, noun, clause, rest[0], place)


Individual = tuple[str | None, ...]


def is_true_of(word: str | None, individual: Individual) -> bool:
    return word is None or any(is_within(most_specific, word) for most_specific in individual)


def split_world(sentence: Sentence, world: tuple[Individual, ...]) -> tuple[int, int]:
    """How many of the subject's individuals are in the predicate, and how many are not."""
    subject = (sentence.adjective, sentence.noun, sentence.clause)
    inside = outside = 0
    for individual in world:
        if all(is_true_of(word, individual) for word in subject):
            hit = is_true_of(sentence.verb, individual) and is_true_of(sentence.place, individual)
            inside, outside = inside + hit, outside + (not hit)
    return inside, outside


TRUTH = {
    "all": lambda inside, outside: outside == 0,
    "some": lambda inside, outside: inside > 0,
    "no": lambda inside, outside: inside == 0,
    "not all": lambda inside, outside: outside > 0,
    "some not": lambda inside, outside: outside > 0,
}


def individuals_for(pair: tuple[Sentence, Sentence]) -> list[Individual]:
    """One individual per pattern of truth of the pair's words: sentences cannot tell more apart."""
    words = {word for s in pair for word in (s.adjective, s.noun, s.clause, s.verb, s.place)}
    options = []
    for tree in TREES:
        used = words & set(tree)
        patterns = {frozenset(w for w in used if is_within(word, w)): word for word in [None, *tree]}
        options.append(list(patterns.values()))
    return list(product(*options))


def brute_force_label(premise: Sentence, hypothesis: Sentence) -> str:
    """The label over all worlds of 1 or 2 individuals in which both subjects exist.

    Larger worlds add nothing: a sentence forbids kinds of individuals or asks for one, so two of the
    individuals of any world, witnesses of the two subjects or of what the sentences (or a denial) ask for,
    already make a world with the same outcome.
    """
    kinds = individuals_for((premise, hypothesis))
    outcomes = set()
    for world in chain(combinations(kinds, 1), combinations(kinds, 2)):
        counts = [split_world(sentence, world) for sentence in (premise, hypothesis)]
        if all(sum(count) for count in counts):
            first, second = (
                TRUTH[s.quantifier](*count) for s, count in zip((premise, hypothesis), counts, strict=True)
            )
            if first:
                outcomes.add(second)
    assert outcomes, "the premise can be true"
    return {frozenset([True]): "entailment", frozenset([False]): "contradiction"}.get(
        frozenset(outcomes), "neutral"
    )


def test_labels_hold_in_all_small_worlds() -> None:
    # Worlds grow with the square of the kinds: rows of few kinds, as many as a second affords.
    rows = [
        row
        for row in rows_of(max_steps=6, train_rows=500)
        if len(individuals_for((parse(row.premise), parse(row.hypothesis)))) <= 24
    ]
    assert min(Counter((row.label) for row in rows).values()) >= 20
    assert {row.difficulty for row in rows} >= {1, 2, 3, 4}
    for row in rows:
        assert brute_force_label(parse(row.premise), parse(row.hypothesis)) == row.label, row


@pytest.mark.parametrize(
    ("premise", "hypothesis", "label"),
    [
        ("all dogs run", "all poodles move", "entailment"),
        ("all dogs run", "all animals run", "neutral"),
        ("all dogs run", "some poodles run", "entailment"),  # existential import
        ("all dogs run", "no poodles run", "contradiction"),  # the same
        ("all dogs run", "all dogs walk", "contradiction"),
        ("no dogs run", "no small dogs sprint upstairs", "entailment"),
        ("no dogs run", "no animals run", "neutral"),
        ("some poodles run upstairs", "some dogs move indoors", "entailment"),
        ("some dogs run", "some poodles run", "neutral"),
        ("some dogs run", "some dogs do not walk", "entailment"),
        ("some dogs do not run", "not all dogs run", "entailment"),
        ("not all dogs run", "all animals run", "contradiction"),
        ("all dogs that sing run", "all dogs run", "neutral"),
        ("all dogs that sing run", "all dogs that run sing", "neutral"),
    ],
)
def test_known_inferences(premise: str, hypothesis: str, label: str) -> None:
    pair = (parse(premise), parse(hypothesis))
    assert pair[0].text() == premise
    assert label_of(*pair) == brute_force_label(*pair) == label


def test_possible_labels_of_quantifiers_are_those_that_occur() -> None:
    noun_pairs = [("dogs", "dogs"), ("dogs", "poodles"), ("poodles", "dogs"), ("dogs", "cats")]
    verb_pairs = [("run", "run"), ("run", "sprint"), ("sprint", "run"), ("run", "walk")]
    for first, second in product([q for q in QUANTIFIERS if q != "some not"], repeat=2):
        labels = {
            label_of(
                Sentence(first, None, nouns[0], None, verbs[0], None),
                Sentence(second, None, nouns[1], None, verbs[1], None),
            )
            for nouns, verbs in product(noun_pairs, verb_pairs)
        }
        expected = synthetic_nli.POSSIBLE[first][second] or "n"
        assert {label[0] for label in labels} == set(expected), (first, second)


# --- what the corpus promises ---


def test_labels_and_difficulties_are_balanced() -> None:
    for split in ("train", "dev"):
        counts = Counter((row.label, row.difficulty) for row in rows_of(split))
        assert set(counts) == set(product(LABELS, (1, 2, 3)))
        assert len(set(counts.values())) == 1


def test_difficulty_counts_the_edited_slots() -> None:
    for row in rows_of(max_steps=6):
        premise, hypothesis = parse(row.premise), parse(row.hypothesis)
        edited = sum(getattr(premise, slot) != getattr(hypothesis, slot) for slot in synthetic_nli.SLOTS)
        assert edited == row.difficulty


def test_rows_are_distinct_and_dev_is_not_in_train() -> None:
    train, dev = (
        [(row.premise, row.hypothesis) for row in rows_of(split, train_rows=3000, dev_rows=1000)]
        for split in ("train", "dev")
    )
    assert len(set(train)) == 3000
    assert len(set(dev)) == 1000
    assert not set(train) & set(dev)
    # another seed draws other rows, and still none that this seed's dev has
    other = [(row.premise, row.hypothesis) for row in rows_of(seed=1, train_rows=3000)]
    assert set(other) != set(train)
    assert not set(other) & set(dev)


def test_noise_hits_its_share_of_train_only() -> None:
    clean, noisy = rows_of(), rows_of(label_noise=0.25)
    changed = [(a, b) for a, b in zip(clean, noisy, strict=True) if a != b]
    assert len(changed) == 90
    for before, after in changed:
        assert after.label != after.clean_label == before.label
        assert replace(after, label=before.label) == before
    assert len({after.label for _, after in changed}) == 3
    assert rows_of("dev", label_noise=0.25) == rows_of("dev")
    assert all(row.label == row.clean_label for row in rows_of("dev", label_noise=1.0))
    assert all(row.label != row.clean_label for row in rows_of(label_noise=1.0))


def test_fewer_rows_are_a_prefix_of_more() -> None:
    assert list(islice(generate(replace(SMALL, train_rows=3000), "train"), 360)) == rows_of()


def test_rows_depend_on_the_seed_alone() -> None:
    code = (
        "import hashlib; from distill_dist.data.synthetic_nli import *;"
        "from distill_dist.config.schema_data import SyntheticConfig;"
        "rows = list(generate(SyntheticConfig(train_rows=360, label_noise=0.1), 'train'));"
        "print(hashlib.sha256(repr(rows).encode()).hexdigest())"
    )
    here = hashlib.sha256(repr(rows_of(label_noise=0.1)).encode()).hexdigest()
    environment = {**os.environ, "PYTHONHASHSEED": "12345"}
    there = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True, timeout=120
    )
    assert there.stdout.strip() == here


def test_all_phenomena_occur() -> None:
    sentences = [parse(text) for row in rows_of() for text in (row.premise, row.hypothesis)]
    assert {s.quantifier for s in sentences} == set(QUANTIFIERS)
    assert {s.place for s in sentences} == {None, *PLACES}
    assert any(s.adjective for s in sentences)
    assert any(s.clause for s in sentences)
    words = set(" ".join(row.premise + " " + row.hypothesis for row in rows_of()).split())
    assert words == set(vocabulary())
    assert all(sum(word in tree for tree in TREES) == 1 for tree in TREES for word in tree)
    assert all(tree_of(word) is not None for tree in TREES for word in tree)


def test_unknown_split_and_too_many_rows() -> None:
    with pytest.raises(UserError, match=r"'test'.*train, dev"):
        list(generate(SMALL, "test"))


def test_exhausted_grammar_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(synthetic_nli, "MOST_PAIRS_PER_ROW", 3)
    monkeypatch.setattr(synthetic_nli, "label_of", lambda premise, hypothesis: "neutral")
    with pytest.raises(UserError, match=r"train_rows: 360 asked for.*label entailment"):
        rows_of()


# --- the tokenizer ---


def test_tokenizer_is_a_bert_tokenizer_of_whole_words(tmp_path: Path) -> None:
    build_tokenizer(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer.is_fast
    encoded = tokenizer("No small dogs RUN", "not all poodles run")
    names = tokenizer.convert_ids_to_tokens(encoded["input_ids"])
    assert names == ["[CLS]", "no", "small", "dogs", "run", "[SEP]", "not", "all", "poodles", "run", "[SEP]"]
    assert encoded["token_type_ids"] == [0] * 6 + [1] * 5
    assert tokenizer.pad_token_id == 0
    assert all(len(tokenizer.tokenize(word)) == 1 for word in vocabulary())
    assert tokenizer.tokenize("mole")[0] != "[UNK]"


def test_tokenizer_is_the_same_every_time(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("a", "b")]
    for folder in folders:
        build_tokenizer(folder)
    files = [{file.name: file.read_bytes() for file in folder.iterdir()} for folder in folders]
    assert "tokenizer.json" in files[0]
    assert files[0] == files[1]

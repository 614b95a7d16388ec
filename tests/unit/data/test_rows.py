from __future__ import annotations

import math

import pytest

from distill_dist.data.rows import BadRow, RawRow, TextRow, check_row

LABELS = ("entailment", "neutral", "contradiction")


def check(label="neutral", texts=("a",), labels=LABELS):
    return check_row(RawRow(7, texts, label), labels)


@pytest.mark.parametrize(
    ("value", "number"),
    [("contradiction", 2), (" neutral ", 1), ("1", 1), (2, 2), (0, 0), (1.0, 1)],
)
def test_labels_are_names_or_numbers(value, number):
    assert check(value) == TextRow(7, ("a",), number, -1, -1)


def test_names_go_before_numbers():
    assert check("1", labels=("1", "0")).label == 0
    assert check(1, labels=("1", "0")).label == 0


@pytest.mark.parametrize("value", [None, "", "-", "-1", -1, math.nan])
def test_a_missing_label(value):
    assert check(value).kind == "missing label"


@pytest.mark.parametrize("value", ["maybe", 3, "3", -2, 0.5, True, "²", "1.5"])
def test_an_unknown_label_is_told_with_those_there_are(value):
    bad = check(value)
    assert (bad.line, bad.kind) == (7, "unknown label")
    assert "0 entailment, 1 neutral, 2 contradiction" in bad.reason


@pytest.mark.parametrize("text", ["", "  \t", None])
def test_an_empty_text_of_a_pair(text):
    bad = check(texts=("a", text))
    assert bad == BadRow(7, "empty text", "text 2 is empty")


@pytest.mark.parametrize("text", [b"caf\xe9", "half a pair \ud83d"])
def test_broken_utf8(text):
    assert check(texts=(text,)).kind == "broken utf-8"


def test_bytes_are_decoded():
    assert check(texts=("café".encode(),)).texts == ("café",)


def test_a_number_is_no_text():
    assert check(texts=(12,)).kind == "text is no string"


def test_the_generators_knowledge_is_kept():
    row = check_row(RawRow(1, ("a", "b"), "neutral", difficulty=3, clean_label="entailment"), LABELS)
    assert (row.label, row.difficulty, row.clean_label) == (1, 3, 0)


@pytest.mark.parametrize(
    ("value", "name"),
    [("web", "web"), (" web ", "web"), ("café".encode(), "café"), (3, "3"), (3.0, "3"), (0, "0")],
)
def test_a_source_is_a_name_or_a_number(value, name):
    assert check_row(RawRow(7, ("a",), 1, source=(value,)), LABELS).source == name


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (None, "missing source"),
        (" ", "missing source"),
        (math.nan, "missing source"),
        (b"caf\xe9", "broken utf-8"),
        ({"a": 1}, "source is no name"),
    ],
)
def test_a_source_that_is_none_is_a_bad_row(value, kind):
    assert check_row(RawRow(7, ("a",), 1, source=(value,)), LABELS).kind == kind


def test_without_a_column_there_is_no_source():
    assert check_row(RawRow(7, ("a",), 1), LABELS).source is None

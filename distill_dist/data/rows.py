"""One row on its way in: as its source gave it, and checked; or bad, with its place and the reason."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

MISSING_LABELS = {"", "-", "-1"}  # MNLI writes "-" where annotators disagreed, the hub -1 in test splits
UNKNOWN = -1  # a difficulty or clean label that the source does not tell


@dataclass(frozen=True, slots=True)
class RawRow:
    """A row as the source has it. ``line`` counts from 1: the line in a text file, the row elsewhere."""

    line: int
    texts: tuple[Any, ...]  # str, or bytes not yet decoded
    label: Any  # class name or class number
    difficulty: int = UNKNOWN
    clean_label: Any = None


@dataclass(frozen=True, slots=True)
class TextRow:
    """A good row: one or two texts and a class number."""

    line: int
    texts: tuple[str, ...]
    label: int
    difficulty: int
    clean_label: int


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that cannot be used. ``kind`` is what is counted, ``reason`` what is told; ``name`` an unknown label."""

    line: int
    kind: str
    reason: str
    name: str = ""


SHOWN_CLASSES = 20  # in the message about an unknown label


def check_row(raw: RawRow, labels: tuple[str, ...]) -> TextRow | BadRow:
    """The row with its texts decoded and its label as a class number, or why that is impossible."""
    texts = []
    for number, value in enumerate(raw.texts, 1):
        text = _check_text(value, raw.line, number)
        if isinstance(text, BadRow):
            return text
        texts.append(text)
    label = _check_label(raw.label, raw.line, labels)
    if isinstance(label, BadRow):
        return label
    clean = UNKNOWN if raw.clean_label is None else labels.index(raw.clean_label)
    return TextRow(raw.line, tuple(texts), label, raw.difficulty, clean)


def _check_text(value: Any, line: int, number: int) -> str | BadRow:
    try:
        if isinstance(value, bytes):
            value = value.decode("utf-8")
        elif isinstance(value, str):
            value.encode("utf-8")  # JSON can smuggle in half a surrogate pair, which tokenizers refuse
    except UnicodeError as error:
        return BadRow(line, "broken utf-8", f"text {number} is not UTF-8: {error}")
    if value is None or (isinstance(value, str) and not value.strip()):
        return BadRow(line, "empty text", f"text {number} is empty")
    if not isinstance(value, str):
        return BadRow(line, "text is no string", f"text {number} is a {type(value).__name__}: {value!r:.40}")
    return value


def _check_label(value: Any, line: int, labels: tuple[str, ...]) -> int | BadRow:
    """Names go before numbers, so that classes called "1" and "0" mean what they say."""
    if isinstance(value, float):
        # a column of numbers with a hole in it comes as floats
        value = None if math.isnan(value) else int(value) if value.is_integer() else value
    name = "" if value is None else str(value).strip()
    if name in labels:
        return labels.index(name)
    if name in MISSING_LABELS:
        return BadRow(line, "missing label", f"the label is missing ({value!r})")
    # ASCII, because int() also reads digits of other scripts; and it refuses thousands of them
    if name.isascii() and name.isdigit() and len(name) < 10 and int(name) < len(labels):
        return int(name)
    known = ", ".join(f"{number} {label}" for number, label in enumerate(labels[:SHOWN_CLASSES]))
    known += ", …" if len(labels) > SHOWN_CLASSES else ""
    return BadRow(line, "unknown label", f"unknown label {value!r:.60} (there are: {known})", name)

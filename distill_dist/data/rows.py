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
    source: tuple[Any, ...] = ()  # its value, where `data.source_column` names a column


@dataclass(frozen=True, slots=True)
class TextRow:
    """A good row: one or two texts and a class number; ``source`` is None without `data.source_column`."""

    line: int
    texts: tuple[str, ...]
    label: int
    difficulty: int
    clean_label: int
    source: str | None = None


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that cannot be used. ``kind`` is what is counted, ``reason`` what is told; ``name`` an unknown label."""

    line: int
    kind: str
    reason: str
    name: str = ""


SHOWN_CLASSES = 20  # in the message about an unknown label


def check_row(raw: RawRow, labels: tuple[str, ...]) -> TextRow | BadRow:
    """The row with its texts and source decoded and its label as a class number, or why that is impossible."""
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
    source = _check_source(raw.source[0], raw.line) if raw.source else None
    if isinstance(source, BadRow):
        return source
    return TextRow(raw.line, tuple(texts), label, raw.difficulty, clean, source)


def _check_text(value: Any, line: int, number: int) -> str | BadRow:
    value = _decode(value, line, f"text {number}")
    if isinstance(value, BadRow):
        return value
    if value is None or (isinstance(value, str) and not value.strip()):
        return BadRow(line, "empty text", f"text {number} is empty")
    if not isinstance(value, str):
        return BadRow(line, "text is no string", f"text {number} is a {type(value).__name__}: {value!r:.40}")
    return value


def _decode(value: Any, line: int, what: str) -> Any:
    """The value, bytes as text."""
    try:
        if isinstance(value, bytes):
            return value.decode("utf-8")
        if isinstance(value, str):
            value.encode("utf-8")  # JSON can smuggle in half a surrogate pair, which tokenizers refuse
    except UnicodeError as error:
        return BadRow(line, "broken utf-8", f"{what} is not UTF-8: {error}")
    return value


def _check_source(value: Any, line: int) -> str | BadRow:
    """A name: a text or a number without the blanks around it."""
    value = _without_hole(_decode(value, line, "the source"))
    if isinstance(value, BadRow):
        return value
    if value is None or not str(value).strip():
        return BadRow(line, "missing source", f"the source is missing ({value!r})")
    if isinstance(value, dict | list):
        return BadRow(line, "source is no name", f"the source is a {type(value).__name__}: {value!r:.40}")
    return str(value).strip()


def _without_hole(value: Any) -> Any:
    """The value, but 3 for 3.0 and None for NaN: a column of numbers with a hole in it comes as floats."""
    if not isinstance(value, float):
        return value
    return None if math.isnan(value) else int(value) if value.is_integer() else value


def _check_label(value: Any, line: int, labels: tuple[str, ...]) -> int | BadRow:
    """Names go before numbers, so that classes called "1" and "0" mean what they say."""
    value = _without_hole(value)
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

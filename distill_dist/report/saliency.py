"""Saliency examples as `saliency.json` of a run holds them, ready to be coloured."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from distill_dist.report.run_record import RunRecord, number_at, read_object, value_at

FILE = "saliency.json"
FORMAT = 1
_FRAME = re.compile(r"[<\[].+[>\]]")  # [CLS], </s>
# of colours that eyes tell apart: strength in orange, and for and against in blue and orange
_STRONG = (213, 94, 0)
_FOR = (0, 114, 178)


@dataclass(frozen=True)
class Token:
    """``colour`` is a CSS colour; ``joined``: no space before it, as a word's later pieces."""

    text: str
    colour: str
    joined: bool


@dataclass(frozen=True)
class View:
    """One model's view of a row: what it predicts, how surely, and its tokens by ‖g‖ and by g·E."""

    who: str
    predicted: str
    probability: float | None
    strength: tuple[Token, ...]
    signed: tuple[Token, ...]


@dataclass(frozen=True)
class Example:
    """One row under both models."""

    row: int
    label: str
    views: tuple[View, ...]
    correlation: float | None  # Spearman's of ‖g‖ between the two


@dataclass(frozen=True)
class Examples:
    """Those of one run. ``chosen`` says why these rows."""

    split: str
    chosen: str
    found: tuple[Example, ...]


def read_examples(run: RunRecord) -> Examples | None:
    """The run's examples; None where there are none, or the file is damaged, which is noted."""
    content = read_object(run.path / FILE, run.problems)
    if not content:
        return None
    model = value_at(content, "asked", "model")
    if run.weights and isinstance(model, str) and model != run.weights:
        run.problems.append(
            f"{FILE} is of another model than the run's own: run launcher/report.py --saliency again"
        )
        return None
    try:
        if content["format"] != FORMAT:
            raise ValueError(f"format {content['format']!r}, not {FORMAT}")
        found = tuple(_example(row, content["labels"]) for row in content["rows"])
        return Examples(str(content["split"]), str(content["chosen"]), found)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        run.problems.append(f"{FILE} is not what launcher/report.py --saliency writes: {error!r}")
        return None


def _example(row: dict[str, Any], labels: Sequence[str]) -> Example:
    tokens = [str(token) for token in row["tokens"]]
    views = tuple(_view(who, row[who], tokens, labels) for who in ("teacher", "student"))
    return Example(int(row["row"]), str(labels[row["label"]]), views, number_at(row, "correlation"))


def _view(who: str, found: dict[str, Any], tokens: Sequence[str], labels: Sequence[str]) -> View:
    probabilities = [float(value) for value in found["probabilities"]]
    predicted = max(range(len(probabilities)), key=probabilities.__getitem__)
    norms = _numbers(found["norm"], len(tokens))
    dots = _numbers(found["dot"], len(tokens)) if value_at(found, "dot") is not None else []
    return View(
        who,
        str(labels[predicted]),
        probabilities[predicted],
        tuple(_coloured(tokens, norms, _strength)),
        tuple(_coloured(tokens, dots, _signed)) if dots else (),
    )


def _numbers(values: Sequence[Any], count: int) -> list[float]:
    found = [float(value) for value in values]
    if len(found) != count or not all(map(math.isfinite, found)):
        raise ValueError(f"{len(found)} numbers for {count} tokens, or not all finite")
    return found


def _coloured(tokens: Sequence[str], values: Sequence[float], colour: Any) -> list[Token]:
    """Each token's share of the row's largest value: the scale of a row says nothing (METHOD.md §5)."""
    largest = max((abs(value) for value in values), default=0.0) or 1.0
    return [
        Token(text, colour(value / largest), joined)
        for (text, joined), value in zip(_words(tokens), values, strict=True)
    ]


def _words(tokens: Sequence[str]) -> list[tuple[str, bool]]:
    """(text, whether it goes on with the word before): WordPiece marks those that do, BPE and unigrams the others."""
    marks = ("Ġ", "▁")
    if any(token.startswith(marks) for token in tokens):
        return [
            (token[1:], False) if token.startswith(marks) else (token, not _FRAME.fullmatch(token))
            for token in tokens
        ]
    return [(token[2:], True) if token.startswith("##") else (token, False) for token in tokens]


def _strength(share: float) -> str:
    return _rgba(_STRONG, share)


def _signed(share: float) -> str:
    return _rgba(_FOR if share > 0 else _STRONG, abs(share))


def _rgba(colour: tuple[int, int, int], share: float) -> str:
    """At most 0.7 opaque, so that black letters stay readable (contrast 5.6 on the orange)."""
    red, green, blue = colour
    return f"rgba({red},{green},{blue},{0.7 * share:.2f})"

"""Text of a run inside Markdown: it breaks no line, no table and no block, and becomes no markup."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import PurePosixPath

# no path: what follows a letter, a scheme's colon (`pkg://`, but `file:///` has one), another slash or a variable
_ABSOLUTE = re.compile(r"(?:file://|(?<![\w:/.~$}-])|(?<=:)(?!//))/[^\s,;'\"()\[\]{}]+")
_HOMES = ("home", "Users")  # below them stand people's names
_TOP = 2  # components of an absolute path that name a machine's layout or its owner: /home/somebody


def one_line(text: str) -> str:
    """``text`` with everything that ends a line, or cannot be seen, turned into single blanks."""
    return " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())


def code(text: str) -> str:
    """``text`` as an inline code span; where its own characters could end that or a cell, by entities, which are
    literal text everywhere (CommonMark §2.5)."""
    text = one_line(text)
    if text and not set(text) & set("`|\\"):
        return f"`{text}`"
    literal = "".join(letter if letter.isalnum() or letter == " " else f"&#{ord(letter)};" for letter in text)
    return f"<code>{literal}</code>"


def block(text: str, language: str) -> str:
    """A fenced block; the fence is longer than any row of backticks in ``text``."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table; its cells are Markdown without a `|`: what is not our own text goes through ``code``."""
    assert all("|" not in cell for row in (header, *rows) for cell in row), rows
    lines = [list(header), ["---"] * len(header), *(list(row) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def hide_places(text: str, *, folder: str = "") -> str:
    """``text`` without absolute paths: those below ``folder`` as seen from there, others by their last parts."""
    key, equals, value = text.partition("=")
    if text.startswith("/"):
        return _short(text, folder)
    if equals and value.startswith("/"):
        return f"{key}={_short(value, folder)}"
    return _ABSOLUTE.sub(lambda match: _short(match[0], folder), text)


def _short(path: str, folder: str) -> str:
    parts = PurePosixPath(path.removeprefix("file://")).parts[1:]
    inside = PurePosixPath(folder).parts[1:]
    if inside and parts[: len(inside)] == inside and len(parts) > len(inside):
        return "/".join(parts[len(inside) :])
    last = parts[_TOP:] or (() if parts[0] in _HOMES else parts[-1:])
    return "/".join(("…", *last[-2:]))

"""What docs/SUMMARY.md says of a run's summary and of its tags, as patterns to hold real ones against."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from tiny import REPOSITORY

_PLACES = {
    "SPLIT": r"dev\w*", "TERM": "[a-z_]+", "HOST": r"(teacher\d+|in_process(-\d+)?)", "CLASS": ".+",
    "_M": r"_\d+", "_NN": r"_\d\d", "_N": r"_\d+", r"\[M\]": r"\[\d+\]", r"\*": ".+",
}  # fmt: skip


def undocumented_keys(summary: dict[str, Any]) -> list[str]:
    """Dotted keys of ``summary`` that the page does not have."""
    known = [_pattern(name) for name in _names("## Keys of", "….")]
    return [key for key in _leaves(summary, "") if not any(re.fullmatch(each, key) for each in known)]


def undocumented_tags(tags: set[str]) -> list[str]:
    """The ``tags`` that it does not have."""
    names = _names("## Tags of", "…/")
    of_hosts = "|".join(re.findall(r"`(\w+)`", "".join(_cells("## Tags of", "… `"))))
    known = [
        _pattern(name).replace("NAME", "[a-z_]+" if name.startswith("wire") else f"({of_hosts})")
        for name in names
    ]
    return sorted(tag for tag in tags if not any(re.fullmatch(each, tag) for each in known))


def _names(title: str, again: str) -> list[str]:
    """What stands in the first column; ``again`` stands for the first name of a cell up to its last part."""
    found = []
    for cell in _cells(title, "`"):
        first, *others = re.findall("`([^`]+)`", cell)
        above = first.rpartition(again[-1])[0]
        found += [first, *(other.replace(again, f"{above}{again[-1]}") for other in others)]
    return found


def _cells(title: str, start: str) -> Iterator[str]:
    page = (REPOSITORY / "docs" / "SUMMARY.md").read_text(encoding="utf-8")
    table = page.split(title)[1].split("\n\n")[1:3]
    for line in "\n".join(table).splitlines():
        if line.startswith(f"| {start}"):
            yield line.split("|")[1].strip()


def _pattern(name: str) -> str:
    found = re.escape(name)
    for place, pattern in _PLACES.items():
        found = found.replace(place, pattern)
    return found


def _leaves(value: Any, key: str) -> Iterator[str]:
    """Dotted keys of everything that is not a section; empty sections count."""
    if isinstance(value, dict) and value:
        for name, inner in value.items():
            yield from _leaves(inner, f"{key}.{name}" if key else name)
    elif isinstance(value, list) and value and isinstance(value[0], dict):
        for number, inner in enumerate(value):
            yield from _leaves(inner, f"{key}[{number}]")
    else:
        yield key

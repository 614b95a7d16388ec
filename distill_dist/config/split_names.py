"""What a split may be called: its name is a folder of the prepared data and part of telemetry tags."""

from __future__ import annotations

import re

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,99}")
_TAKEN = ("tokenizer", "teacher_tokenizer")  # the prepared folder holds folders of these names


def split_name_problem(split: str) -> str | None:
    """What is wrong with the name ``split``; None when it will do."""
    if split in _TAKEN:
        return f"'{split}' is taken: the prepared folder has a folder of that name; call the split otherwise"
    if not _NAME.fullmatch(split):
        return f"'{split}' must be letters, digits, _ and - (not first), at most 100 of them"
    return None

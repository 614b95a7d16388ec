"""What is wrong with one value of a configuration, in words: what omegaconf lets pass, and what it refuses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_type_hints

from distill_dist.config.fields import SchemaField, nearest_name
from distill_dist.config.schema_teacher import PooledTeacher

POOL = tuple[PooledTeacher, ...]


def value_problem(field: SchemaField, value: Any) -> str | None:
    """What omegaconf lets pass: `yes` as the text 'True', a list as a mapping's text, `???` as unset."""
    if field.type == POOL and isinstance(value, list):
        return _entries_problem(field, value)
    listed = list(value.values()) if isinstance(value, Mapping) else value
    entries = listed if isinstance(listed, list) else [listed]
    if "???" in entries:
        return "'???' is not a value"
    if any(isinstance(entry, (Mapping, list)) for entry in entries):
        return type_problem(field, value)
    if field.type in (int, float, tuple[int, ...], dict[str, int]) and any(
        isinstance(entry, str) and not entry.isascii() and "${" not in entry for entry in entries
    ):
        return type_problem(field, value)  # int() would read digits of every script
    holds_text = field.allowed or field.type in (str, tuple[str, ...], dict[str, str])
    if holds_text and any(isinstance(entry, bool) for entry in entries):
        return "YAML reads yes, no, on, off, true and false as truth values; put the text in quotes"
    return None


def _entries_problem(field: SchemaField, entries: list[Any]) -> str | None:
    """The same of a list of sections."""
    if not all(isinstance(entry, Mapping) for entry in entries):
        return type_problem(field, entries)
    inner = {
        name: SchemaField(name, hint, False, None) for name, hint in get_type_hints(PooledTeacher).items()
    }
    for name, value in ((name, value) for entry in entries for name, value in entry.items()):
        if name not in inner:
            return f"no such field: {name}; it takes {field.words}"
        if problem := value_problem(inner[name], value):
            return f"{name}: {problem}"
    return None


# Values that other tools have, and why they are missing here.
_NOT_OFFERED = {
    (
        "train.precision",
        "fp16",
    ): "in fp16 matched gradients underflow to 0, which has no direction; take bf16",
}


def type_problem(field: SchemaField, value: Any) -> str:
    """What the field takes instead of ``value``, which is of no such type."""
    if value is None:
        return f"null is not allowed; it takes {field.words}"
    if isinstance(value, str) and value.lower() == "none" and field.optional:
        return f"it takes {field.words} (YAML's word for none is null)"
    if reason := _NOT_OFFERED.get((field.key, str(value))):
        return f"it takes {field.words}; {reason}"
    near = nearest_name(str(value), field.allowed)
    return f"it takes {field.words}" + (f"; nearest: {near}" if near else "")

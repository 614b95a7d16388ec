"""The schema as a flat table: dotted key -> type and default. What loading, checking and describing share."""

from __future__ import annotations

import difflib
import functools
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import cache
from typing import Any, Literal

from distill_dist.config.schema import RunConfig
from distill_dist.config.schema_teacher import PooledTeacher
from distill_dist.errors import UserError


@dataclass(frozen=True)
class SchemaField:
    """One leaf of the schema. ``type`` is its annotation less the ``| None`` that ``optional`` says."""

    key: str
    type: Any
    optional: bool
    default: Any

    @property
    def allowed(self) -> tuple[str, ...]:
        """The names a `Literal` field takes; empty for every other type."""
        return typing.get_args(self.type) if typing.get_origin(self.type) is Literal else ()

    @property
    def words(self) -> str:
        """The type as a user would say it."""
        if self.allowed:
            return "one of " + ", ".join(self.allowed)
        text = _TYPE_WORDS[self.type]
        return f"{text}, or null" if self.optional else text


_TYPE_WORDS: dict[Any, str] = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "a text",
    tuple[int, ...]: "a list of whole numbers",
    tuple[str, ...]: "a list of texts",
    dict[str, str]: "a mapping from text to text",
    dict[str, int]: "a mapping from text to whole numbers",
    tuple[PooledTeacher, ...]: "a list of {path: a text, weight: a number}",
}


def flat_fields(config: RunConfig) -> dict[str, Any]:
    """Dotted key -> value of every field, in the schema's order."""
    return {key: functools.reduce(getattr, key.split("."), config) for key in schema_fields()}


def refuse_changes(config: RunConfig, was: RunConfig, *, but: tuple[str, ...], why: str) -> None:
    """Raises UserError for the first field of ``config`` that differs from ``was`` and starts with none of ``but``."""
    before = flat_fields(was)
    for key, value in flat_fields(config).items():
        if value != before[key] and not key.startswith(but):
            raise UserError(f"{key}={value!r}: the run has {before[key]!r}, and {why}")


@cache
def schema_sections() -> Mapping[str, type]:
    """Dotted key -> dataclass of every section, in the schema's order; the whole tree is ``""``."""
    return types.MappingProxyType(dict(_walk_sections("", RunConfig)))


def _walk_sections(prefix: str, cls: type) -> Iterable[tuple[str, type]]:
    yield prefix, cls
    for name, hint in typing.get_type_hints(cls).items():
        if is_dataclass(hint):
            yield from _walk_sections(join(prefix, name), typing.cast(type, hint))


@cache
def schema_fields() -> Mapping[str, SchemaField]:
    """Dotted key -> leaf field, in the schema's order, sections flattened."""
    found: dict[str, SchemaField] = {}
    for prefix, cls in schema_sections().items():
        hints = typing.get_type_hints(cls)
        for entry in fields(cls):
            if is_dataclass(hints[entry.name]):
                continue
            key = join(prefix, entry.name)
            inner, optional = _without_none(hints[entry.name])
            default = entry.default if entry.default_factory is MISSING else entry.default_factory()
            found[key] = SchemaField(key, inner, optional, default)
    return types.MappingProxyType(found)


def _without_none(hint: Any) -> tuple[Any, bool]:
    if typing.get_origin(hint) not in (types.UnionType, typing.Union):
        return hint, False
    (inner,) = (arg for arg in typing.get_args(hint) if arg is not type(None))
    return inner, True


def join(prefix: str, name: str) -> str:
    """``prefix.name``; the root's prefix is empty."""
    return f"{prefix}.{name}" if prefix else name


def value_at(config: RunConfig, key: str) -> Any:
    """The value of a dotted key."""
    value: Any = config
    for name in key.split("."):
        value = getattr(value, name)
    return value


def describe_problem(config: RunConfig, key: str, text: str) -> str:
    """`key = value: text`, as messages say it."""
    value = value_at(config, key)
    shown = "null" if value is None else repr(list(value) if isinstance(value, tuple) else value)
    return f"{key} = {shown}: {text}"


def nearest_key(key: str) -> str | None:
    """The valid dotted key that a wrong one most likely meant, or None.

    A sibling written nearly so or by its initials (`lr`), else a field of that very name elsewhere
    (`temperature` means `objective.temperature`), else, where the section is wrong too, whatever looks alike.
    """
    known = [k for k in (*schema_sections(), *schema_fields()) if k]
    prefix, _, name = key.rpartition(".")
    siblings = {k.rpartition(".")[2]: k for k in known if k.rpartition(".")[0] == prefix}
    for sibling, sibling_key in siblings.items():
        if name == "".join(word[:1] for word in sibling.split("_")):
            return sibling_key
    if near := nearest_name(name, siblings):
        return siblings[near]
    elsewhere = [k for k in known if k.rpartition(".")[2] == name]
    if elsewhere:
        return elsewhere[0]
    return None if prefix in schema_sections() else nearest_name(key, known)


def nearest_name(name: str, names: Iterable[str]) -> str | None:
    """The entry of ``names`` that ``name`` most likely meant, or None."""
    found = difflib.get_close_matches(name, list(names), n=1, cutoff=0.6)
    return found[0] if found else None

"""The reference of every field, from the schema's own docstrings: `--help` and configs/README.md.

`python -m distill_dist.config.describe > configs/README.md` renews the page; a test says when that is due.
"""

from __future__ import annotations

import ast
import inspect
import json
import sys
import textwrap
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

from distill_dist.config import schema, schema_curriculum, schema_data, schema_teacher
from distill_dist.config.check import RANGES
from distill_dist.config.fields import SchemaField, schema_fields, schema_sections

_HEADER = """\
# Fields of a run's configuration

Made by `python -m distill_dist.config.describe > configs/README.md` from `distill_dist/config/schema.py` and
the ranges in `check.py`; a test fails when it is out of date.

A run is one YAML file with these fields nested by their dots; on the command line the same fields are
written `dotted.key=value` and win over the file (`--config configs/gkd_sst2.yaml train.epochs=2`). Lists are
written `student.layer_list=[1,3,5]`, no value `null`, an empty text `""`. A value may refer to another field
(`${teacher.path}`) or to the environment (`${oc.env:NAME,default}`). `null` and `auto` mean "derive it". An
unknown key, a wrong type, a value out of range or two fields that contradict each other end a launcher with
one message and exit code 2 before anything is loaded.
"""


@cache
def field_docs() -> Mapping[str, str]:
    """Dotted key -> the string literal below the field, as one line; fields without one are missing."""
    nodes = [
        node
        for module in (schema, schema_curriculum, schema_data, schema_teacher)
        for node in ast.parse(inspect.getsource(module)).body
    ]
    by_class = {node.name: dict(_docs_below(node)) for node in nodes if isinstance(node, ast.ClassDef)}
    docs: dict[str, str] = {}
    for key in schema_fields():
        prefix, _, name = key.rpartition(".")
        text = by_class[schema_sections()[prefix].__name__].get(name)
        if text:
            docs[key] = text
    return docs


def _docs_below(node: ast.ClassDef) -> Iterator[tuple[str, str]]:
    for statement, following in zip(node.body, node.body[1:], strict=False):
        if not (isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name)):
            continue
        if isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant):
            yield statement.target.id, " ".join(str(following.value.value).split())


def describe() -> str:
    """The reference as Markdown: one table per section with name, values, default and meaning."""
    parts = [_HEADER]
    for prefix, cls in schema_sections().items():
        title = f"`{prefix}`" if prefix else "Top level"
        intro = " ".join((cls.__doc__ or "").split())
        parts.append(f"## {title}\n\n{intro}\n\n{_table(prefix)}")
    return "\n".join(parts)


def _table(prefix: str) -> str:
    rows = ["| field | takes | default | meaning |", "|---|---|---|---|"]
    for key, field in schema_fields().items():
        if key.rpartition(".")[0] == prefix:
            cells = (f"`{key}`", takes(field), f"`{_literal(field.default)}`", field_docs()[key])
            rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(rows) + "\n"


def help_text() -> str:
    """The reference for a terminal: `key = default`, what it takes, what it means."""
    lines = ["fields of the configuration (key=value here, nested by their dots in YAML):", ""]
    for key, field in schema_fields().items():
        lines.append(f"  {key}={_literal(field.default)}  [{takes(field)}]")
        lines += textwrap.wrap(field_docs()[key], 100, initial_indent=" " * 6, subsequent_indent=" " * 6)
    return "\n".join(lines)


def takes(field: SchemaField) -> str:
    """Type, allowed names and range of a field in words."""
    allowed = f", {RANGES[field.key].words}" if field.key in RANGES else ""
    if field.optional:
        return f"{field.words.removesuffix(', or null')}{allowed}, or null"
    return f"{field.words}{allowed}"


def _literal(value: Any) -> str:
    """A default as it would stand in YAML."""
    return json.dumps(value, ensure_ascii=False) if not isinstance(value, tuple) else json.dumps(list(value))


if __name__ == "__main__":
    sys.stdout.write(describe())

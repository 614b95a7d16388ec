"""A field that nothing reads is a bug (STYLE.md 3): every leaf of the schema is an attribute read somewhere.

Outside `distill_dist/config`, where they are only described, or in its `methods.py`, which answers questions about
them. It looks at attribute names, so a name that two sections share counts when
either is read. `student.shape` is handed on whole, as keyword arguments of a Hugging Face configuration.
"""

from __future__ import annotations

import ast
from pathlib import Path

from distill_dist.config.fields import schema_fields

REPOSITORY = Path(__file__).parents[3]


def _attributes_read() -> set[str]:
    sources = [*(REPOSITORY / "distill_dist").rglob("*.py"), *(REPOSITORY / "launcher").glob("*.py")]
    names: set[str] = set()
    for path in sources:
        if (REPOSITORY / "distill_dist" / "config") in path.parents and path.name != "methods.py":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                names.add(node.attr)
    return names


def test_no_field_is_never_read() -> None:
    read = _attributes_read()
    assert "shape" in read
    leaves = [key for key in schema_fields() if not key.startswith("student.shape.")]
    assert [key for key in leaves if key.rpartition(".")[2] not in read] == []

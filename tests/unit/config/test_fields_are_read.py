"""A field that nothing reads is a bug (STYLE.md 3): every leaf of the schema is an attribute read somewhere.

Outside `distill_dist/config` only. It looks at attribute names, so a name that two sections share counts when
either is read. Skipped until the launcher of training exists.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from distill_dist.config.fields import schema_fields

REPOSITORY = Path(__file__).parents[3]


def _attributes_read() -> set[str]:
    sources = [*(REPOSITORY / "distill_dist").rglob("*.py"), *(REPOSITORY / "launcher").glob("*.py")]
    names: set[str] = set()
    for path in sources:
        if (REPOSITORY / "distill_dist" / "config") in path.parents:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                names.add(node.attr)
    return names


@pytest.mark.skipif(
    not (REPOSITORY / "launcher" / "train.py").exists(), reason="the readers are not written yet"
)
def test_no_field_is_never_read() -> None:
    read = _attributes_read()
    assert [key for key in schema_fields() if key.rpartition(".")[2] not in read] == []

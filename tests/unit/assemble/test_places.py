"""What must be the same on all ranks, and what a node may keep elsewhere."""

from __future__ import annotations

from typing import Any

import pytest
from config.trees import good_with

from distill_dist.assemble.run import _without_places
from distill_dist.config.schema_teacher import PooledTeacher

TWO = {"teachers": (PooledTeacher("teacher", 2.0), PooledTeacher("other", 1.0))}


@pytest.mark.parametrize(
    "elsewhere",
    [
        {"teacher.path": "/node/teacher"},
        {"run_dir": "/node/run"},
        {"teacher.path": "/a", "teachers": (PooledTeacher("/a", 2.0), PooledTeacher("/b", 1.0))},
    ],
)
def test_places_may_differ(elsewhere: dict[str, Any]) -> None:
    assert _without_places(good_with({**TWO, **elsewhere})) == _without_places(good_with(TWO))


@pytest.mark.parametrize(
    "other",
    [
        {"seed": 1},
        {"teacher.combine": "best"},
        {"teachers": ()},
        {"teachers": (PooledTeacher("teacher", 2.0), PooledTeacher("other", 3.0))},
    ],
)
def test_what_is_trained_may_not(other: dict[str, Any]) -> None:
    assert _without_places(good_with({**TWO, **other})) != _without_places(good_with(TWO))

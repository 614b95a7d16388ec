"""A sharded teacher against the whole one: the same rows from a share of the weights."""

from __future__ import annotations

from pathlib import Path

import pytest

from distill_dist.teacher.sanity import Probe, drift
from multi.harness import run_ranks

# A member pads and fills up its own share, and kernels may choose another order of summation for other sizes: fp32
# rounding (6e-8) in some 10 operations of each of 4 layers
TOLERANCE = 4 * 10 * 6e-8


@pytest.mark.parametrize(
    ("size", "families", "offload"),
    [
        (2, ["bert", "deberta-v2"], False),
        (3, ["modernbert", "distilbert", "electra"], False),
        (2, ["roberta"], True),
        (1, ["bert"], True),
    ],
)
def test_rows_are_those_of_the_whole_teacher(
    tmp_path: Path, size: int, families: list[str], offload: bool
) -> None:
    members = run_ranks(
        "multi.shards_worker:compares", size=size, folder=tmp_path, families=families, offload=offload
    )
    for family in families:
        leader = members[0][family]
        assert len(leader["errors"]) == 9
        assert max(leader["errors"].values()) < TOLERANCE, leader["errors"]
        sharded, whole = leader["description"]
        assert drift(*(Probe(**about.pop("probe")) for about in (sharded, whole))) is None
        assert sharded == whole
        for member in members:
            share = member[family]
            # a bias of 3 classes, or a table of 2 rows, cannot be cut evenly
            assert share["before"] <= share["most"] < 1.05 * share["everything"] / size
            assert share["after"] == share["before"]
        assert sum(member[family]["before"] for member in members) >= leader["everything"]
    assert "not finite" in members[0]["not sane"]
    assert members[0]["rows after it"] == 7

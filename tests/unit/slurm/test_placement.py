from __future__ import annotations

from dataclasses import replace

import pytest

from distill_dist.config.schema import ClusterConfig, RunConfig
from distill_dist.errors import UserError
from distill_dist.slurm.placement import Seat, describe, place
from distill_dist.slurm.script import Part


def run(teachers: int, placement: str = "last", device: str = "auto") -> RunConfig:
    return replace(RunConfig(), cluster=ClusterConfig(teachers=teachers, placement=placement, device=device))  # type: ignore[arg-type]


def test_every_rank_has_its_node_and_gpu() -> None:
    seats = place(run(2, "per_node"), [Part((2,), 2, 2)])
    assert seats == [Seat(0, False, 1, 0), Seat(1, True, 1, 1), Seat(2, False, 2, 0), Seat(3, True, 2, 1)]
    assert describe(seats).splitlines()[1].split() == ["ranks", "1", "teacher", "node", "1", "gpu", "1"]


def test_the_parts_of_a_heterogeneous_job_are_nodes_in_a_row() -> None:
    seats = place(run(1, "nodes"), [Part((2,), 2, 0), Part((1,), 1, 0)])
    assert [(seat.node, seat.teaches) for seat in seats] == [(1, False)] * 2 + [(2, False)] * 2 + [(3, True)]
    assert {seat.gpu for seat in seats} == {None}
    assert "ranks 4         teacher  node 3    cpu" in describe(seats)


def test_a_range_of_nodes_must_work_at_each_of_its_sizes() -> None:
    assert len(place(run(4, "nodes"), [Part((2, 3), 4, 4)])) == 12
    with pytest.raises(UserError, match="leaves no student among the 4 processes"):
        place(run(4, "nodes"), [Part((1, 2, 3), 4, 4)])


@pytest.mark.parametrize(
    ("config", "parts", "message"),
    [
        (run(3), [Part((1,), 3, 3)], "leaves no student"),
        (
            run(3, "nodes"),
            [Part((3,), 2, 2)],
            r"cannot make cluster.teachers=3 of whole nodes.*one of \[2, 4\]",
        ),
        (run(1, device="cuda"), [Part((3,), 1, 0)], "the nodes have no GPU"),
        (run(1, "nodes"), [Part((2,), 1, 1), Part((1,), 1, 0)], "the nodes of part 2 have no GPU"),
        (run(1), [Part((1,), 4, 2)], "have 4 processes and 2 GPUs"),
    ],
)
def test_what_cannot_work_is_refused(config: RunConfig, parts: list[Part], message: str) -> None:
    with pytest.raises(UserError, match=message):
        place(config, parts)


def test_on_the_cpu_nobody_asks_for_gpus() -> None:
    assert [seat.gpu for seat in place(run(1, device="cpu"), [Part((1,), 4, 2)])] == [None] * 4

"""Shares of a request, and what becomes of a member's failures, without processes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NoReturn, cast

import pytest
import torch

from distill_dist.comm.attempts import Broken
from distill_dist.records import SignalSpec
from distill_dist.teacher.compute import NotSane
from distill_dist.teacher.shards import ShardedComputer, share_of
from distill_dist.teacher.wire import Request


@pytest.mark.parametrize("size", [1, 2, 3, 7])
@pytest.mark.parametrize("rows", [1, 2, 6, 7, 50])
def test_shares_are_all_rows_once_and_in_order(rows: int, size: int) -> None:
    shares = [share_of(rows, member=member, size=size) for member in range(size)]
    assert [row for share in shares for row in share] == list(range(rows))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@dataclass
class Alone:
    """A group of one."""

    member: int = 0
    size: int = 1
    announced: int = 0

    def announce(self, kind: int, content: bytes = b"") -> tuple[int, bytes]:
        self.announced += 1
        return kind, content

    def gather(self, content: bytes) -> list[bytes]:
        return [content]


class Ended(BaseException):
    """In place of the process's end."""


def request() -> Request:
    ids_BL = torch.tensor([[5, 6], [7, 0]], dtype=torch.int32)
    lengths_B = torch.tensor([2, 1], dtype=torch.int32)
    return Request((), ids_BL, lengths_B, (ids_BL % 2).to(torch.uint8), None)


def test_rows_come_back_and_what_the_model_finds_of_itself_is_an_answer() -> None:
    group = Alone()

    def compute(asked: Request, spec: SignalSpec) -> list[bytes]:
        if spec.layers:
            raise NotSane("its logits are not finite")
        return [bytes(row) for row in asked.input_ids_BL.tolist()]

    sharded = ShardedComputer(cast(Any, compute), group, give_up=lambda broken: pytest.fail(str(broken)))
    assert sharded(request(), SignalSpec()) == [bytes([5, 6]), bytes([7, 0])]
    with pytest.raises(NotSane, match="not finite"):
        sharded(request(), SignalSpec((1,)))
    sharded.beat()
    assert group.announced == 3


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), "memory"),
        (MemoryError("full"), "memory"),
        (RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer"), "lost"),
        (torch.distributed.DistBackendError("NCCL error"), "lost"),
        (RuntimeError("CUDA error: device-side assert triggered"), "lost"),
        (ValueError("this row is wrong"), "model"),
    ],
)
def test_a_failure_inside_the_model_ends_the_member(error: Exception, kind: str) -> None:
    said: list[Broken] = []

    def compute(asked: Request, spec: SignalSpec) -> list[bytes]:
        raise error

    def give_up(broken: Broken) -> NoReturn:
        said.append(broken)
        raise Ended

    with pytest.raises(Ended):
        ShardedComputer(cast(Any, compute), Alone(), give_up=give_up)(request(), SignalSpec())
    (broken,) = said
    assert broken.kind == kind
    assert str(error) in broken.reason

"""What a follower's supervisor does with its worker, without processes."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
import torch.distributed as dist

from distill_dist.assemble.shard_follower import Follower
from distill_dist.comm.attempts import Attempts, Broken


class Worker:
    """A process that ends when it is told to."""

    def __init__(self, attempt: int) -> None:
        self.attempt, self.code = attempt, None

    def poll(self) -> int | None:
        return self.code

    def kill(self) -> None:
        self.code = self.code or -9

    def wait(self, timeout: float | None = None) -> int | None:
        return self.code


@pytest.fixture
def attempts() -> Attempts:
    store = dist.HashStore()
    store.set_timeout(timedelta(seconds=5))
    return Attempts(store, leader=2)


def test_its_worker_follows_the_attempts(attempts: Attempts) -> None:
    started: list[Any] = []
    follower = Follower(attempts, lambda number: started.append(Worker(number)) or started[-1])
    follower.tend()
    assert started == []
    attempts.begin()
    follower.tend()
    follower.tend()
    assert [worker.attempt for worker in started] == [1]
    attempts.begin()  # the leader's host gave the first one up, which may hang
    follower.tend()
    assert [(worker.attempt, worker.code) for worker in started] == [(1, -9), (2, None)]
    attempts.break_(2, Broken("memory", "of the leader"))
    follower.tend()
    assert started[1].code == -9
    follower.tend()
    assert len(started) == 2, "until there is another attempt"
    assert follower.broken() == Broken("memory", "of the leader")


@pytest.mark.parametrize(("code", "broken"), [(-9, "lost"), (1, "lost"), (0, None)])
def test_the_others_hear_of_a_worker_that_was_not_let_go(
    attempts: Attempts, code: int, broken: str | None
) -> None:
    worker: Any = Worker(1)
    follower = Follower(attempts, lambda _: worker)
    attempts.begin()
    follower.tend()
    worker.code = code
    follower.tend()
    found = attempts.broken(1)
    assert (found and found.kind) == broken


@pytest.mark.parametrize("reason", [None, "teacher 3 has left"])
def test_who_leaves_ends_its_worker_and_says_so_where_the_others_wait(
    attempts: Attempts, reason: str | None
) -> None:
    worker: Any = Worker(1)
    follower = Follower(attempts, lambda _: worker)
    attempts.begin()
    follower.tend()
    follower.leave(reason)
    assert worker.code == -9
    assert attempts.broken(1) == (None if reason is None else Broken("lost", reason))

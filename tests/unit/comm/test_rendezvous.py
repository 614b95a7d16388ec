"""Whose store is it? A port that another run listens on must cost that run nothing."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from distill_dist.comm.environment import LaunchEnvironment
from distill_dist.comm.rendezvous import Store, connect_store, free_port
from distill_dist.errors import UserError

Place = tuple[Store, int]


@pytest.fixture
def first() -> Iterator[Place]:
    """A run of one process, and its port."""
    port = free_port("127.0.0.1")
    launch = LaunchEnvironment(0, 1, 0, 1, "127.0.0.1", port)
    return connect_store(launch, timeout_s=10.0, run="first"), port


def rank_1_at(port: int, *, attempt: int = 0) -> LaunchEnvironment:
    return LaunchEnvironment(1, 2, 1, 2, "127.0.0.1", port, attempt=attempt)


def test_a_strangers_rank_waits_for_its_own_rank_0_and_disturbs_nobody(first: Place) -> None:
    store, port = first
    with pytest.raises(UserError, match=r"ranks \[0\] of 2 to join"):
        connect_store(rank_1_at(port), timeout_s=0.5, run="second")
    assert not store.check(["joined/1"])
    assert store.check(["joined/0"])


def test_the_same_run_started_twice_is_told_apart_by_its_ranks(first: Place) -> None:
    store, port = first
    store.add("joining/1", 1)  # the first start's rank 1
    with pytest.raises(UserError, match=rf"a rank 1 has joined at 127\.0\.0\.1:{port} before"):
        connect_store(rank_1_at(port), timeout_s=0.5, run="first")
    assert not store.check(["joined/1"])


def test_torchruns_next_attempt_finds_its_old_store_clean(first: Place) -> None:
    store, port = first
    store.add("joining/1", 1)
    with pytest.raises(UserError, match=r"ranks \[0\] of 2 to join"):
        connect_store(rank_1_at(port, attempt=1), timeout_s=0.5, run="first")

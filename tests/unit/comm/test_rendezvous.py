"""Whose store is it? A port that another run listens on must cost that run nothing."""

from __future__ import annotations

import socket
import time

import pytest

from distill_dist.comm.environment import LaunchEnvironment
from distill_dist.comm.rendezvous import Store, connect_store, free_port
from distill_dist.errors import Interrupted, UserError

Place = tuple[Store, int]


@pytest.fixture
def first() -> Place:
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


def test_ranks_with_other_settings_are_told_apart(first: Place) -> None:
    """By whoever looks, so by all of them."""
    store, port = first
    store.set("settings/0", "these")
    store.set("joined/0", "here 1")
    with pytest.raises(UserError, match=r"ranks \[0\] were started with other settings than rank 1"):
        connect_store(rank_1_at(port), timeout_s=5.0, run="first", settings="those")


def test_a_port_that_accepts_and_never_answers_costs_the_deadline_and_no_more() -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        began = time.monotonic()
        with pytest.raises(UserError, match="nobody answers"):
            connect_store(rank_1_at(mute.getsockname()[1]), timeout_s=0.5)
        assert time.monotonic() - began < 20


def test_a_stop_signal_ends_the_wait_for_the_others() -> None:
    launch = LaunchEnvironment(0, 2, 0, 2, "127.0.0.1", free_port("127.0.0.1"))
    asked = iter([False, False, True])
    with pytest.raises(Interrupted, match="before the run began"):
        connect_store(launch, timeout_s=60.0, stopped=lambda: next(asked, True))

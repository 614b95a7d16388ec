"""Whose store is it? A port that another run listens on must cost that run nothing."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable

import pytest

from distill_dist.comm.environment import LaunchEnvironment
from distill_dist.comm.rendezvous import Store, await_ready, connect_store, free_port, never
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


def both(work: Callable[[int, LaunchEnvironment], object]) -> list[Exception | None]:
    """What became of ``work`` as rank 0 and as rank 1, side by side."""
    port, found = free_port("127.0.0.1"), dict[int, Exception | None]()
    kept: list[object] = []  # rank 0's store among them, which the other one still asks

    def run(rank: int) -> None:
        try:
            kept.append(work(rank, LaunchEnvironment(rank, 2, rank, 2, "127.0.0.1", port)))
            found[rank] = None
        except Exception as error:  # whatever it is, the test looks at it
            found[rank] = error

    threads = [threading.Thread(target=run, args=(rank,), daemon=True) for rank in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30.0)
    assert sorted(found) == [0, 1]
    return [found[0], found[1]]


@pytest.mark.parametrize("told", [0, 1])
def test_a_stop_on_one_rank_ends_the_meeting_for_both(told: int) -> None:
    stops = iter([None, None])

    def meet(rank: int, launch: LaunchEnvironment) -> object:
        if rank != told:
            time.sleep(0.5)  # the other one waits, and is stopped
            return connect_store(launch, timeout_s=20.0)
        return connect_store(launch, timeout_s=20.0, stopped=lambda: next(stops, "by a signal"))

    for error in both(meet):
        assert isinstance(error, Interrupted), error
        assert f"stopped by a signal (rank {told}) before the run began" in str(error)


@pytest.mark.parametrize("rank", [0, 1])
def test_who_is_stopped_waits_for_nobody_for_long(monkeypatch: pytest.MonkeyPatch, rank: int) -> None:
    monkeypatch.setattr("distill_dist.comm.rendezvous.STOP_S", 0.3)
    monkeypatch.setattr("distill_dist.comm.stop_word.LINGER_S", 0.3)
    launch = LaunchEnvironment(rank, 2, rank, 2, "127.0.0.1", free_port("127.0.0.1"))
    began = time.monotonic()
    with pytest.raises(Interrupted, match="before the run began"):
        connect_store(launch, timeout_s=60.0, stopped=lambda: "by a signal")
    assert time.monotonic() - began < 20


@pytest.mark.parametrize("told", [0, 1])
def test_a_stop_while_loading_ends_the_loading_of_both(told: int) -> None:
    """The one that is told waits for the other, or loads for longer: both start, or neither does."""
    stops = iter([None, None])

    def load(rank: int, launch: LaunchEnvironment) -> None:
        store = connect_store(launch, timeout_s=20.0)
        time.sleep(0.5 * (rank != told))
        stopped = (lambda: next(stops, "by a signal")) if rank == told else never
        await_ready(store, launch, timeout_s=20.0, stopped=stopped)

    for error in both(load):
        assert isinstance(error, Interrupted), error
        assert f"(rank {told})" in str(error)


def test_students_on_different_devices_are_told_apart() -> None:
    def load(rank: int, launch: LaunchEnvironment) -> None:
        store = connect_store(launch, timeout_s=20.0)
        await_ready(store, launch, timeout_s=20.0, device=("cuda", "cpu")[rank])

    for error in both(load):
        assert isinstance(error, UserError), error
        assert "ranks [1] on cpu, ranks [0] on cuda" in str(error)
        assert "cluster.device=cpu" in str(error)


def test_a_teacher_names_no_device() -> None:
    def load(rank: int, launch: LaunchEnvironment) -> object:
        store = connect_store(launch, timeout_s=20.0)
        await_ready(store, launch, timeout_s=20.0, device=("cuda", "")[rank])
        return store

    assert both(load) == [None, None]

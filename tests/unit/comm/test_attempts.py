from __future__ import annotations

import threading
from datetime import timedelta

import pytest
import torch.distributed as dist

from distill_dist.comm.attempts import AttemptBroken, Attempts, Broken, StoreGone
from distill_dist.comm.rendezvous import announce_over, has_failed, hear_over
from distill_dist.errors import Interrupted


def store() -> dist.Store:
    found = dist.HashStore()
    found.set_timeout(timedelta(seconds=5))
    return found


def test_attempts_are_counted_for_each_replica() -> None:
    shared = store()
    one, same, other = (Attempts(shared, leader=leader) for leader in (2, 2, 4))
    assert (one.newest(), one.begin(), one.begin(), same.newest(), other.newest()) == (0, 1, 2, 2, 0)


def test_the_first_reason_stands() -> None:
    attempts = Attempts(store(), leader=2)
    assert attempts.broken(1) is None
    attempts.break_(1, Broken("memory", "too many rows"))
    attempts.break_(1, Broken("lost", "a member ended"))
    assert attempts.broken(1) == Broken("memory", "too many rows")
    assert attempts.broken(2) is None


@pytest.mark.parametrize("done", [True, False])
def test_a_leader_that_left(done: bool) -> None:
    attempts = Attempts(store(), leader=2)
    assert attempts.left() is None
    attempts.leave(done=done)
    assert attempts.left() is done


def test_members_meet_when_all_have_loaded_the_same() -> None:
    shared = store()
    late = threading.Timer(
        0.2, Attempts(shared, leader=2).meet, (1,), {"member": 1, "size": 2, "teacher": "a", "timeout_s": 5.0}
    )
    late.start()
    attempts = Attempts(shared, leader=2)
    assert not attempts.have_loaded(1, size=2)
    attempts.meet(1, member=0, size=2, teacher="a", timeout_s=5.0)
    late.join(5)
    assert attempts.have_loaded(1, size=2)


def test_who_waits_hears_that_it_is_in_vain() -> None:
    shared = store()
    attempts = Attempts(shared, leader=2)
    with pytest.raises(AttemptBroken, match=r"members \[1\] did not load within 0 s"):
        attempts.meet(1, member=0, size=2, teacher="a", timeout_s=0.1)
    attempts.break_(2, Broken("refused", "rank 3: no CUDA device"))
    with pytest.raises(AttemptBroken, match="rank 3: no CUDA device"):
        attempts.meet(2, member=0, size=2, teacher="a", timeout_s=5.0)
    shared.set("replica/2/3/loaded/1", "another")
    with pytest.raises(AttemptBroken, match="member 1 of the teacher has another model than member 0"):
        attempts.meet(3, member=0, size=2, teacher="a", timeout_s=5.0)
    assert attempts.broken(3) is not None


@pytest.mark.parametrize("early", [True, False])
def test_the_runs_end_is_heard(early: bool) -> None:
    shared = store()
    assert hear_over(shared) is None
    listening = threading.Timer(0.1, hear_over, (shared,))
    listening.start()
    announce_over(shared, linger=False, early=early, listeners=1)
    assert hear_over(shared) is not early
    listening.join(5)


def test_a_store_that_is_gone() -> None:
    master = dist.TCPStore(
        "127.0.0.1", 0, is_master=True, timeout=timedelta(seconds=2), wait_for_workers=False
    )
    reached = dist.TCPStore("127.0.0.1", master.port, is_master=False, timeout=timedelta(seconds=2))
    attempts = Attempts(reached, leader=2)
    assert attempts.begin() == 1
    assert not has_failed(reached)
    del master
    with pytest.raises(StoreGone, match="student 0 is gone"):
        attempts.newest()
    with pytest.raises(Interrupted, match="student 0 is gone"):
        hear_over(reached)
    assert has_failed(reached)

from __future__ import annotations

from datetime import timedelta

import pytest
import torch
import torch.distributed as dist

from distill_dist.assemble.device import pick_device
from distill_dist.assemble.place import Place
from distill_dist.comm.environment import LaunchEnvironment
from distill_dist.comm.roles import Roles
from distill_dist.errors import Interrupted, UserError


def place(store: dist.Store, rank: int) -> Place:
    launch = LaunchEnvironment(rank, 2, rank, 2, "127.0.0.1", 0)
    return Place(launch=launch, roles=Roles((0, 1), ()), store=store, device=torch.device("cpu"), run="")


@pytest.mark.parametrize("error", [UserError("no such folder"), RuntimeError("a bug"), MemoryError("full")])
def test_whatever_fails_on_one_rank_ends_the_others(error: Exception) -> None:
    store = dist.HashStore()
    store.set_timeout(timedelta(seconds=5))
    with pytest.raises(type(error)) as own, place(store, 1).loading(timeout_s=5.0):
        raise error
    assert own.value is error
    with (
        pytest.raises(UserError, match=rf"another rank failed: rank 1: .*{error}") as other,
        place(store, 0).loading(timeout_s=5.0),
    ):
        pass
    assert other.value.said


def test_a_second_ctrl_c_on_one_rank_stops_the_others() -> None:
    store = dist.HashStore()
    store.set_timeout(timedelta(seconds=5))
    with pytest.raises(KeyboardInterrupt), place(store, 1).loading(timeout_s=5.0):
        raise KeyboardInterrupt
    store.add("stop/heard", 1)  # the interrupted one hears nothing any more; rank 0 would wait for it
    with (
        pytest.raises(Interrupted, match=r"stopped by Ctrl-C \(rank 1\) before the run began"),
        place(store, 0).loading(timeout_s=5.0),
    ):
        pass


def test_a_device_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device("auto", 3) == pick_device("cpu", 0) == torch.device("cpu")
    with pytest.raises(UserError, match=r"cluster\.device=cuda, but torch finds no CUDA device"):
        pick_device("cuda", 0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(UserError, match="process 2 of this host has no CUDA device: it sees 2") as plain:
        pick_device("auto", 2)
    assert "per task" not in str(plain.value)
    monkeypatch.setenv("SLURM_PROCID", "2")
    with pytest.raises(UserError, match="--gpus-per-node, not per task"):
        pick_device("auto", 2)


def test_students_ask_the_leaders_of_replicas_alone() -> None:
    launch = LaunchEnvironment(4, 6, 4, 6, "127.0.0.1", 0)
    roles = Roles((0, 1), (2, 3, 4, 5), shards=2)
    found = Place(launch=launch, roles=roles, store=dist.HashStore(), device=torch.device("cpu"), run="")
    assert found.teacher_names == ("teacher2", "teacher4")
    assert found.student_names == ("student0", "student1")
    assert found.rpc_names[found.rank] == "teacher4"

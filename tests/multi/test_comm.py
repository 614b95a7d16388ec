"""Groups, the rendezvous and RPC with real processes that die and hang. No DeepSpeed here."""

from __future__ import annotations

import socket

import pytest

from distill_dist.comm.pulse import SILENT_S
from multi.harness import run_ranks

SOON_S = 10.0  # against limits of 30 to 60 s; measured below 0.5 s on a free core


def test_collectives_and_a_dead_sibling(tmp_path):
    first, second, third = run_ranks(
        "multi.comm_worker:collectives", size=3, folder=tmp_path, may_die=[1], victim=1
    )
    assert second is None
    for found in (first, third):
        assert found["agreed"] == [2, 0, 7]
        assert found["heard"] == [[0, "rank 0"], [1, "größer"], [2, ""]]
        assert found["sum"] == [3.0, 3.0]
        assert f"rank 1 (process {found['pids']['1']} on " in found["lost"]
        assert "rank 0" not in found["lost"]
        assert "rank 2" not in found["lost"]
        assert found["seconds"] < SOON_S
    assert first["pids"] == third["pids"]
    assert (first["pids"]["0"], first["pids"]["2"]) == (first["pid"], third["pid"])


def test_a_hung_sibling_is_given_up_after_the_limit(tmp_path):
    waiting, *_ = run_ranks("multi.comm_worker:hung_sibling", size=3, folder=tmp_path, timeout_s=2)
    lost = waiting["lost"]
    assert (
        f"lost rank 1 (process {waiting['stopped']} on {socket.gethostname()}), which gives no sign" in lost
    )
    assert "rank 2" not in lost
    assert "(limit 2 s)" in lost
    assert 1.5 < waiting["seconds"] < 2 + SILENT_S + SOON_S


def test_calls_to_the_living_the_hung_and_the_dead(tmp_path):
    found, *_ = run_ranks("multi.comm_worker:calls", size=3, folder=tmp_path, may_die=[2])
    assert found["echo"] == [2, 3]
    teacher = f"teacher1 on {socket.gethostname()}"
    assert found["raised"]["message"] == f"{teacher} failed: ValueError('seven is not a colour')"
    assert found["raised later"]["message"] == f"{teacher} failed: out of memory"
    assert found["hung"]["message"] == f"{teacher} did not answer within 0 s"
    assert 0.5 <= found["hung"]["seconds"] < SOON_S
    for name in ("died", "dead"):
        assert "teacher2" in found[name]["message"], found[name]
        assert found[name]["seconds"] < SOON_S
    assert found["the other one still answers"] == 5


def test_the_world_is_formed_anew_for_a_host_that_replaces_a_dead_one(tmp_path):
    first, second, host, supervisor = run_ranks(
        "multi.comm_worker:replaced_host", size=4, folder=tmp_path, times=3
    )
    assert first["echo"] == [[n + 1, n + 1] for n in range(4)]
    assert first["hosts"] == [["teacher2", "teacher3"]] * 3
    assert set(first["errors"]) <= {"CallFailed", "WorldChanged"}
    assert len(first["errors"]) == 3
    assert second["echo"] == [2, 2]
    assert {found["generation"] for found in (first, second, host)} == {3}
    assert supervisor["ended"] == 0


def test_a_host_that_dies_while_the_world_is_formed_holds_nobody(tmp_path):
    *others, supervisor = run_ranks("multi.comm_worker:host_lost_on_the_way_in", size=4, folder=tmp_path)
    assert supervisor == {"first": -9, "ended": 0}
    assert others[0]["echo"] == [2, 2]
    assert all(found["hosts"] == ["teacher2", "teacher3"] for found in others)
    # torch's own rendezvous waits 30 minutes
    assert all(found["seconds"] < 50 for found in others)


def test_a_rank_that_never_comes_is_named(tmp_path):
    found = run_ranks("multi.comm_worker:rendezvous", size=3, folder=tmp_path, absent=[2], timeout_s=8)
    assert found[2] is None
    # who is later by a moment finds rank 0, and the store with it, gone
    assert "rank 0 waited 8 s for ranks [2] of 3 to join" in found[0]["message"]
    assert "waited 8 s for ranks [2] of 3" in found[1]["message"] or "rank 0" in found[1]["message"]
    assert all(result["seconds"] < 8 + SOON_S for result in found[:2])


def test_without_rank_0_the_address_is_named(tmp_path):
    found = run_ranks("multi.comm_worker:rendezvous", size=2, folder=tmp_path, absent=[0], timeout_s=3)
    assert "rank 1 could not open or reach the rendezvous at 127.0.0.1:" in found[1]["message"]
    assert found[1]["seconds"] < 3 + SOON_S


@pytest.mark.parametrize(
    ("failing", "late_s"), [([1], 0.0), ([0, 2], 3.0)], ids=["one", "rank 0, gone when the next one fails"]
)
def test_who_cannot_load_stops_all_and_one_speaks(tmp_path, failing: list[int], late_s: float):
    found = run_ranks("multi.comm_worker:loading", size=3, folder=tmp_path, failing=failing, late_s=late_s)
    assert [result["said"] for result in found].count(False) == 1
    for rank, result in enumerate(found):
        if rank in failing:
            assert result["message"] == f"teacher.path of rank {rank} does not exist"
        else:
            assert result["said"]
            assert "another rank failed: " in result["message"]
        assert result["seconds"] < SOON_S


def test_the_harness_names_who_hangs_and_who_failed(tmp_path):
    with pytest.raises(AssertionError, match=r"(?s)hung: \[1\].*in sleep_on_rank_1"):
        run_ranks("multi.harness_worker:sleep_on_rank_1", size=2, folder=tmp_path / "hang", limit_s=12)
    with pytest.raises(AssertionError, match=r"(?s)exit codes \{0: 1\}.*ZeroDivisionError"):
        run_ranks("multi.harness_worker:fail", size=1, folder=tmp_path / "fail")

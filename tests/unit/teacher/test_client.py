"""A student's client: shares, signals, hosts that are lost and come back, patience, leases."""

from __future__ import annotations

import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, cast

import pytest
import torch
from torch.futures import Future

from distill_dist.comm.rpc_world import Reply, RpcWorld
from distill_dist.errors import Interrupted, UserError
from distill_dist.records import Batch, SignalSpec
from distill_dist.teacher.client import RemoteTeacher
from distill_dist.teacher.local import LocalTeacher, TeacherLost
from distill_dist.teacher.wire import Request
from distill_dist.teacher.worker_process import WorkerLost
from teacher.service_cases import (
    DEADLINE_S,
    PROBE,
    SPEC,
    Compute,
    FakeWorld,
    assert_equal,
    batches,
    client_of,
    computer,
    each,
    expect_all,
    host_of,
    hosts_named,
    never,
    remote,
    serving,
    signals_of,
    teacher_parts,
)


@pytest.mark.parametrize("ahead", [0, 1, 3, 99])
@pytest.mark.parametrize("teachers", [1, 2, 3])
def test_remote_and_local_teachers_say_the_same(ahead: int, teachers: int) -> None:
    with client_of(hosts_named(teachers)) as client:
        found = list(client.signals(batches(), each, SPEC, ahead=ahead))
        about = client.describe()
        assert about["parameters"] == sum(p.numel() for p in teacher_parts().model.parameters())
    local = LocalTeacher(teacher_parts(), torch.device("cpu"))
    assert [batch.ids_B.tolist() for batch, _ in found] == [[0], [1, 2], [3, 4, 5], [5, 0], [2]]
    for (_, (ours,)), theirs in zip(found, signals_of(local), strict=True):
        assert_equal(ours, theirs)
    assert local.waited_s > 0
    assert client.waited_s > 0


def test_a_row_is_asked_of_one_host_whoever_asks_and_computed_once() -> None:
    seen: dict[str, Counter[bytes]] = {f"teacher{n}": Counter() for n in range(3)}

    def counting(name: str) -> Compute:
        about = computer()

        def compute(request: Request, spec: SignalSpec) -> list[bytes]:
            seen[name].update(request.keys_B)
            return about(request, spec)

        return compute

    hosts = {name: host_of(counting(name), students=2) for name in seen}
    world = FakeWorld(hosts)
    with serving(hosts):
        for student in (0, 1):
            client = remote(world, student=student)
            for _ in range(2):
                signals_of(client)
            client.release(timeout_s=DEADLINE_S)
    assert sum(len(keys) for keys in seen.values()) == 6, "six different rows"
    assert all(count == 1 for keys in seen.values() for count in keys.values())
    assert sum(bool(keys) for keys in seen.values()) > 1


def test_counters_come_from_all_that_answer() -> None:
    hosts = hosts_named(2)
    world = FakeWorld(hosts)
    with serving(hosts):
        client = remote(world)
        signals_of(client)
        found = client.counters()
        assert sum(counts["computed_rows"] for counts in found.values()) == 6
        assert all(counts["busy_ms"] >= 0 for counts in found.values())
        world.dead = {"teacher1"}
        assert list(client.counters()) == ["teacher0"]
        for teaching in hosts.values():
            teaching.release(0)


def test_without_a_cache_rows_are_computed_again() -> None:
    hosts = hosts_named(1, cache_bytes=0)
    with client_of(hosts) as client:
        for _ in range(2):
            signals_of(client, ahead=0)
    assert hosts["teacher0"].counters()["computed_rows"] == 2 * 9


@pytest.mark.parametrize("needed", [True, False])
def test_labels_are_sent_where_the_signal_reads_them(needed: bool) -> None:
    """They are the users' own data, and a signal that does not read them must not depend on them."""
    seen: list[bool] = []
    about = computer()

    def compute(request: Request, spec: SignalSpec) -> list[bytes]:
        seen.append(request.labels_B is not None)
        return about(request, spec)

    spec = SPEC if needed else replace(SPEC, signal="own_max")
    with client_of({"teacher": host_of(compute, about=about)}) as client:
        list(client.signals(batches()[:1], each, spec, ahead=0))
    assert seen == [needed]


def test_items_of_several_batches_and_of_none() -> None:
    items = [(), tuple(batches()[:2]), (batches()[2],)]
    with client_of(hosts_named(2)) as client:
        found = list(client.signals(items, lambda item: item, SPEC, ahead=1))
    assert [len(signals) for _, signals in found] == [0, 2, 1]
    assert [signal.logits_BC.shape[0] for signal in found[1][1]] == [1, 2]


@pytest.mark.parametrize("ahead", [0, 2])
def test_no_more_than_asked_for_is_ahead(ahead: int) -> None:
    taken = []

    def items() -> Iterator[Batch]:
        for number, batch in enumerate(batches()):
            taken.append(number)
            yield batch

    with client_of(hosts_named(1)) as client:
        for received, _ in enumerate(client.signals(items(), each, SPEC, ahead=ahead)):
            assert len(taken) == min(received + ahead + 1, 5)


def test_who_asks_a_full_host_asks_again_and_nothing_is_lost() -> None:
    about = computer()

    def compute(request: Request, spec: SignalSpec) -> list[bytes]:
        until = time.monotonic() + DEADLINE_S  # a quick host is never full
        while not full.counters()["refused"] and time.monotonic() < until:
            time.sleep(0.01)
        return about(request, spec)

    full = host_of(compute, about=about, queue_tokens=1, cache_bytes=0)
    with client_of({"teacher": full}) as client:
        found = signals_of(client, ahead=99)
    local = LocalTeacher(teacher_parts(), torch.device("cpu"))
    for ours, theirs in zip(found, signals_of(local), strict=True):
        assert_equal(ours, theirs)
    assert full.counters()["refused"] > 0
    assert full.counters()["waiting_tokens"] == 0


def test_the_share_of_a_host_that_dies_goes_to_the_others(caplog: pytest.LogCaptureFixture) -> None:
    hosts = hosts_named(3)
    world = FakeWorld(hosts)
    with serving(hosts):
        client = remote(world)
        stream = client.signals(batches(), each, SPEC, ahead=1)
        found = [next(stream)[1][0]]
        world.dead = {"teacher0", "teacher2"}
        found += [signal for _, (signal,) in stream]
        expect_all(found)
        client.release(timeout_s=DEADLINE_S)
        for teaching in hosts.values():
            teaching.release(0)
    assert "2 of 3 teachers are left" in caplog.text
    assert "1 of 3 teachers are left" in caplog.text


def test_a_silent_host_is_lost_at_the_deadline_and_its_share_goes_on() -> None:
    hosts = hosts_named(2)
    world = FakeWorld(hosts)
    with serving(hosts):
        client = remote(world, deadline_s=0.2)
        call = world.call

        def silent(peer: str, function: Callable[..., Any], *args: Any) -> Reply:
            return call(peer, function, *args) if peer == "teacher0" else Reply(peer, Future())

        world.call = silent  # type: ignore[method-assign]
        expect_all(signals_of(client))
        assert client._hosts == ["teacher0"]
        world.call = call  # type: ignore[method-assign]
        client.release(timeout_s=DEADLINE_S)


def test_a_slow_host_is_waited_for_while_it_lives() -> None:
    about = computer()

    def slow(request: Request, spec: SignalSpec) -> list[bytes]:
        time.sleep(0.5)
        return about(request, spec)

    with client_of({"teacher0": host_of(slow, about=about)}, deadline_s=0.1) as client:
        expect_all(signals_of(client, ahead=9))
        assert client._hosts == ["teacher0"]


def test_without_a_host_the_run_stops_and_names_the_last() -> None:
    world = FakeWorld(hosts_named(2))
    client = remote(world)
    world.dead = set(world.hosts)
    client._patience_s = 0.1
    with pytest.raises(TeacherLost, match=r"lost its teacher: teacher[01] cannot be called: gone") as caught:
        signals_of(client)
    assert isinstance(caught.value, Interrupted)  # the run can be resumed
    with pytest.raises(TeacherLost):
        signals_of(client)


def test_when_all_have_stood_down_nobody_is_waited_for_and_their_reasons_are_given() -> None:
    world = FakeWorld(hosts_named(2))
    client = remote(world, patience_s=300.0)
    world.dead = set(world.hosts)
    world.down = {"teacher0": "it has drifted: its logits differ"}
    down = world.down
    threading.Timer(0.3, lambda: down.update(teacher1="3 hosts in a row did not start: no weights")).start()
    begin = time.monotonic()
    with pytest.raises(TeacherLost) as caught:
        signals_of(client)
    assert time.monotonic() - begin < 60, "not patience"
    assert str(caught.value) == (
        "lost its teacher: teacher0 teaches no more: it has drifted: its logits differ; "
        "teacher1 teaches no more: 3 hosts in a row did not start: no weights"
    )


def test_who_stood_down_is_named_beside_the_last_that_was_lost() -> None:
    world = FakeWorld(hosts_named(2))
    client = remote(world)
    world.dead, world.down = set(world.hosts), {"teacher0": "it has drifted"}
    client._patience_s = 0.1
    with pytest.raises(TeacherLost, match=r"teacher0 teaches no more: it has drifted; teacher[01] cannot be"):
        signals_of(client)


def test_rows_that_the_last_one_cannot_compute_end_the_run_at_once() -> None:
    world = FakeWorld({"teacher0": host_of(broken), "teacher1": host_of()})
    with serving({"teacher0": world.members["teacher0"]}):
        client = remote(world, patience_s=300.0)
        world.dead, world.down = {"teacher1"}, {"teacher1": "it has drifted"}
        with pytest.raises(
            TeacherLost, match=r"teacher1 teaches no more: .*; teacher0 did not compute \d row"
        ):
            signals_of(client)
        client.release(timeout_s=DEADLINE_S)


def broken(request: Request, spec: SignalSpec) -> list[bytes]:
    raise ValueError("broken")


def lost(request: Request, spec: SignalSpec) -> list[bytes]:
    raise WorkerLost("3 workers were lost over one request")


@pytest.mark.parametrize(("fails", "left"), [(broken, ["teacher0", "teacher1"]), (lost, ["teacher0"])])
def test_what_a_host_cannot_compute_is_asked_of_another(fails: Compute, left: list[str]) -> None:
    """A host whose model fails on some rows serves others; one that gets no worker up is not asked again."""
    with client_of({"teacher0": host_of(), "teacher1": host_of(fails)}) as client:
        expect_all(signals_of(client))
        assert client._hosts == left


def test_rows_that_no_teacher_can_compute_are_the_users_error() -> None:
    with (
        client_of({"teacher0": host_of(broken), "teacher1": host_of(broken)}) as client,
        pytest.raises(UserError, match=r"no teacher can compute 1 row\(s\): ValueError: broken"),
    ):
        signals_of(client)


def test_hosts_that_teach_differently_are_refused() -> None:
    hosts = {"teacher0": host_of(), "teacher1": host_of(about=computer(fingerprint="0" * 64))}
    with pytest.raises(UserError, match=r"teacher1 does not teach what the others do: teacher\.path must be"):
        remote(FakeWorld(hosts))


def test_a_host_that_is_gone_at_the_start_is_left_out() -> None:
    world = FakeWorld(hosts_named(2))
    world.dead = {"teacher1"}
    assert remote(world)._hosts == ["teacher0"]
    world.dead = {"teacher0", "teacher1"}
    with pytest.raises(TeacherLost, match=r"teacher1 cannot be called"):
        remote(world, patience_s=1)


def test_a_host_that_comes_back_gets_its_share_again() -> None:
    hosts = hosts_named(2)
    world = FakeWorld(hosts)
    with serving(hosts):
        client = remote(world)
        world.dead = {"teacher0", "teacher1"}
        stream = client.signals(batches(), each, SPEC, ahead=1)
        world.asked = 1  # while all are dead: the waiting student finds them alive again
        expect_all([signal for _, (signal,) in stream])
        assert client._hosts == ["teacher0", "teacher1"]
        world.dead = {"teacher1"}
        expect_all(signals_of(client))
        assert client._hosts == ["teacher0"]
        world.asked = world.generation = 2  # it came while nobody waited
        world.dead = set()
        expect_all(signals_of(client))
        assert client._hosts == ["teacher0", "teacher1"]
        client.release(timeout_s=DEADLINE_S)


def test_a_stop_cuts_patience_short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("distill_dist.teacher.asked.STOP_S", 0.3)
    world = FakeWorld(hosts_named(1))
    stopped = threading.Event()
    client = remote(world, should_stop=stopped.is_set)
    world.dead = {"teacher0"}
    threading.Timer(0.3, stopped.set).start()
    begin = time.monotonic()
    with pytest.raises(TeacherLost, match="teacher0 cannot be called"):
        signals_of(client)
    assert 0.5 <= time.monotonic() - begin < 5


def test_nobody_is_waited_for_when_student_0_is_gone() -> None:
    world = FakeWorld(hosts_named(1))
    client = remote(world, patience_s=300.0)
    world.dead, world.is_last = {"teacher0"}, True
    with pytest.raises(TeacherLost, match="teacher0 cannot be called"):
        signals_of(client)


def test_patience_ends_with_a_host_whose_queue_stays_full() -> None:
    hosts = hosts_named(1)
    client = remote(FakeWorld(hosts), patience_s=0.4)
    full: Future[Any] = Future()
    full.set_result(None)
    hosts["teacher0"].put = lambda *_: full  # type: ignore[method-assign]
    begin = time.monotonic()
    with pytest.raises(TeacherLost, match="the queue of teacher0 stayed full"):
        signals_of(client)
    assert 0.4 <= time.monotonic() - begin < 5


def test_patience_ends() -> None:
    hosts = hosts_named(1)
    world = FakeWorld(hosts)
    client = remote(world, deadline_s=0.1, patience_s=0.4)
    hosts["teacher0"].put = lambda *_: Future()  # type: ignore[method-assign, assignment]
    begin = time.monotonic()
    with pytest.raises(
        TeacherLost, match=r"teacher0 on this machine gave no answer while the step could wait"
    ):
        signals_of(client)
    assert 0.4 <= time.monotonic() - begin < 5
    assert ("teacher0", "renew") in world.calls, "it gave signs of life"


def test_a_host_that_answers_late_holds_nobody_while_another_is_ready() -> None:
    """It lives, but its worker loads: it keeps its place, and the other one is asked instead."""
    hosts = hosts_named(2)
    hosts["teacher1"].put = lambda *_: Future()  # type: ignore[method-assign, assignment]
    with serving({"teacher0": hosts["teacher0"]}):
        client = remote(FakeWorld(hosts), deadline_s=0.2, patience_s=4.0)
        begin = time.monotonic()
        expect_all(signals_of(client, ahead=99))
        # at most half of the patience of each of five micro-batches
        assert 2.0 <= time.monotonic() - begin < 5 * 2.0 + 5
        assert client._hosts == ["teacher0", "teacher1"]
        client.release(timeout_s=DEADLINE_S)


def test_a_host_that_hangs_is_waited_for_once_whatever_was_asked_of_it() -> None:
    hosts = hosts_named(2)
    world = FakeWorld(hosts)
    with serving({"teacher0": hosts["teacher0"]}):
        client = remote(world, deadline_s=1.0)
        world.hung = {"teacher1"}
        expect_all(signals_of(client, ahead=99))
        assert world.calls.count(("teacher1", "renew")) == 1
        assert world.calls.count(("teacher1", "ask")) > 1
        assert client._hosts == ["teacher0"]
        calls = len(world.calls)
        assert list(client.counters()) == ["teacher0"]
        assert len(world.calls) == calls + 1, "a lost one is not asked"
        begin = time.monotonic()
        client.release(timeout_s=0.5)
        assert time.monotonic() - begin < 5
        assert ("teacher1", "release") in world.calls, "it may only have been slow"


def test_who_cannot_compute_a_row_waits_for_one_that_is_being_replaced() -> None:
    hosts = {"teacher0": host_of(broken), "teacher1": host_of()}
    world = FakeWorld(hosts)
    with serving(hosts):
        client = remote(world)
        world.dead = {"teacher1"}
        stream = client.signals(batches(), each, SPEC, ahead=0)
        threading.Timer(0.3, lambda: setattr(world, "asked", 1)).start()
        expect_all([signal for _, (signal,) in stream])
        client.release(timeout_s=DEADLINE_S)


def test_a_stop_is_heard_while_a_host_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("distill_dist.teacher.asked.STOP_S", 0.3)
    world = FakeWorld(hosts_named(1))
    stopped = threading.Event()
    client = remote(world, deadline_s=30.0, patience_s=300.0, should_stop=stopped.is_set)
    world.hung = {"teacher0"}
    threading.Timer(0.3, stopped.set).start()
    begin = time.monotonic()
    with pytest.raises(TeacherLost):
        signals_of(client)
    assert time.monotonic() - begin < 10, "not the deadline of a sign of life"


def test_a_teacher_that_does_not_hear_the_release_is_no_error() -> None:
    """Its lease will end; the others hear it all the same."""
    hosts = hosts_named(2)
    world = FakeWorld(hosts)
    client = remote(world)
    world.dead = {"teacher0"}
    assert client.release(timeout_s=DEADLINE_S) is False
    assert world.calls[-2:] == [("teacher0", "release"), ("teacher1", "release")]
    assert hosts["teacher1"].serve(should_stop=never) is True


def test_leases_are_renewed_until_the_release() -> None:
    hosts = hosts_named(1)
    world = FakeWorld(hosts)
    renewed = threading.Event()
    hosts["teacher0"].renew = renewed.set  # type: ignore[method-assign]
    client = RemoteTeacher(
        cast(RpcWorld, world),
        names=["teacher0"],
        student=0,
        deadline_s=DEADLINE_S,
        patience_s=DEADLINE_S,
        lease_s=0.04,
    )
    assert renewed.wait(10)
    client.release(timeout_s=DEADLINE_S)
    assert ("teacher0", "release") in world.calls


def test_teachers_that_disagree_are_refused_at_the_start_and_left_out_later() -> None:
    hosts = hosts_named(2)
    about = computer()
    with torch.no_grad():
        layer = about._parts.layers[0]
        next(weight for weight in layer.parameters() if weight.ndim == 2)[0, 0] += 8.0
    hosts["teacher1"] = host_of(about)
    hosts["teacher1"].description = about.introduce(PROBE)
    with pytest.raises(
        UserError, match="teacher1 has the model of the others, but does not say what they say"
    ):
        remote(FakeWorld(hosts))
    late = hosts_named(2)
    world = FakeWorld(late)
    with serving(late):
        client = remote(world)
        late["teacher1"].description = about.introduce(PROBE)  # it was started again
        world.asked = world.generation = 1
        expect_all(signals_of(client))
        assert client._hosts == ["teacher0"]
        client.release(timeout_s=DEADLINE_S)


def without_numbers() -> Compute:
    about = computer()
    with torch.no_grad():
        about._parts.model.get_input_embeddings().weight.fill_(float("nan"))  # type: ignore[operator]
    return about


def test_rows_that_are_no_numbers_are_asked_of_another(caplog: pytest.LogCaptureFixture) -> None:
    with client_of({"teacher0": host_of(), "teacher1": host_of(without_numbers())}) as client:
        expect_all(signals_of(client))
        assert client._hosts == ["teacher0", "teacher1"]
    assert re.search(r"teacher1 did not compute \d row\(s\): its logits, .* are not finite", caplog.text)
    assert "Traceback" not in caplog.text


@pytest.mark.parametrize("hosts", [1, 2])
def test_rows_that_are_no_numbers_anywhere_are_the_users_error(hosts: int) -> None:
    with client_of({f"teacher{n}": host_of(without_numbers()) for n in range(hosts)}) as client:
        with pytest.raises(UserError, match=r"no teacher can compute 1 row\(s\): its logits, .* not finite"):
            signals_of(client)
        assert len(client._hosts) == hosts

"""Host and client with the RPC world replaced by direct calls: queues, turns, deadlines, leases."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from itertools import pairwise
from typing import Any, cast

import pytest
import torch
from tiny_encoders import ragged_batch, take_rows, tiny_encoder
from torch.futures import Future

from distill_dist.comm.rpc_world import CallFailed, Reply, RpcWorld
from distill_dist.errors import Interrupted
from distill_dist.models.encoder import EncoderParts, encoder_parts
from distill_dist.records import Batch, NoiseSpec, SignalSpec, TeacherSignal
from distill_dist.teacher import host
from distill_dist.teacher.client import LocalTeacher, RemoteTeacher, TeacherLost
from distill_dist.teacher.compute import compute_signal
from distill_dist.teacher.host import TeacherHost
from distill_dist.teacher.wire import Request, WireSignal, pack_request, pack_signal

SPEC = SignalSpec(
    (1, 2),
    cls_states=True,
    cls_gradients=True,
    embedding_gradient=True,
    signal="label",
    attribution_top_k=0,
    noise=NoiseSpec(0.1, 2, 0),
)
DEADLINE_S = 20.0  # never reached where things go well


def teacher_parts() -> EncoderParts:
    return encoder_parts(tiny_encoder(dtype=torch.float32).requires_grad_(False))


def answers_of(parts: EncoderParts) -> Callable[[Request, SignalSpec], WireSignal]:
    def compute(request: Request, spec: SignalSpec) -> WireSignal:
        inputs = request.unpack(torch.device("cpu"))
        labels_B = None if request.labels_B is None else request.labels_B.long()
        return pack_signal(compute_signal(parts, *inputs, spec, labels_B=labels_B), inputs[1])

    return compute


def host_of(compute: Any, *, students: int = 1, lease_s: float = 60.0) -> TeacherHost:
    return TeacherHost(compute, students=students, lease_s=lease_s, description={"parameters": 7})


def never() -> bool:
    return False


class FakeWorld:
    """Calls hosts directly, by the names that RPC would use; remembers who was called with what."""

    def __init__(self, hosts: dict[str, TeacherHost]) -> None:
        self.hosts = hosts
        self.calls: list[tuple[str, str]] = []
        self.dead: set[str] = set()

    def call(self, peer: str, function: Callable[..., Any], *args: Any) -> Reply:
        name = getattr(function, "__name__", "?")
        self.calls.append((peer, name))
        if peer in self.dead:
            raise CallFailed(f"{peer} cannot be called: gone")
        target = self.hosts[peer]
        if name == "ask":
            return Reply(peer, target.put(*args))
        done: Future[Any] = Future()
        done.set_result(target.description if name == "describe" else getattr(target, name)(*args))
        return Reply(peer, done)


def remote(world: FakeWorld, *, student: int = 0, deadline_s: float = DEADLINE_S) -> RemoteTeacher:
    return RemoteTeacher(
        cast(RpcWorld, world), sorted(world.hosts), student=student, deadline_s=deadline_s, lease_s=3600.0
    )


@contextmanager
def serving(hosts: dict[str, TeacherHost]) -> Iterator[list[bool]]:
    """Every host's loop in a thread; it ends when its students have let go, and must."""
    ended: list[bool] = []
    threads = [
        threading.Thread(target=lambda h=h: ended.append(h.serve(should_stop=never)), daemon=True)
        for h in hosts.values()
    ]
    for thread in threads:
        thread.start()
    yield ended
    for thread in threads:
        thread.join(timeout=10)
        assert not thread.is_alive(), "a host did not end"


def each(batch: Batch) -> tuple[Batch, ...]:
    return (batch,)


def batches() -> list[Batch]:
    whole = ragged_batch((9, 3, 7, 12, 5, 8))
    return [take_rows(whole, rows) for rows in ([0], [1, 2], [3, 4, 5], [5, 0], [2])]


def assert_equal(first: TeacherSignal, second: TeacherSignal) -> None:
    for field in fields(TeacherSignal):
        assert torch.equal(getattr(first, field.name), getattr(second, field.name)), field.name


@pytest.mark.parametrize("ahead", [0, 1, 3, 99])
@pytest.mark.parametrize("teachers", [1, 2])
def test_remote_and_local_teachers_say_the_same(ahead: int, teachers: int) -> None:
    hosts = {f"teacher{n}": host_of(answers_of(teacher_parts())) for n in range(teachers)}
    world = FakeWorld(hosts)
    with serving(hosts) as ended:
        client = remote(world)
        found = list(client.signals(batches(), each, SPEC, ahead=ahead))
        assert client.describe() == {"parameters": 7}
        client.release(timeout_s=DEADLINE_S)
    assert ended == [True] * teachers
    local = LocalTeacher(teacher_parts(), torch.device("cpu"))
    expected = list(local.signals(batches(), each, SPEC, ahead=ahead))
    assert [batch.ids_B.tolist() for batch, _ in found] == [[0], [1, 2], [3, 4, 5], [5, 0], [2]]
    for (_, (ours,)), (_, (theirs,)) in zip(found, expected, strict=True):
        assert_equal(ours, theirs)
    assert local.waited_s > 0
    assert client.waited_s > 0


@pytest.mark.parametrize("needed", [True, False])
def test_labels_are_sent_where_the_signal_reads_them(needed: bool) -> None:
    """They are the users' own data, and a signal that does not read them must not depend on them."""
    seen: list[bool] = []

    def compute(request: Request, spec: SignalSpec) -> WireSignal:
        seen.append(request.labels_B is not None)
        return answers_of(teacher_parts())(request, spec)

    hosts = {"teacher": host_of(compute)}
    spec = SPEC if needed else replace(SPEC, signal="own_max")
    with serving(hosts):
        client = remote(FakeWorld(hosts))
        list(client.signals(batches()[:1], each, spec, ahead=0))
        client.release(timeout_s=DEADLINE_S)
    assert seen == [needed]


def test_items_of_several_batches_and_of_none() -> None:
    hosts = {"teacher": host_of(answers_of(teacher_parts()))}
    items = [(), tuple(batches()[:2]), (batches()[2],)]
    with serving(hosts):
        client = remote(FakeWorld(hosts))
        found = list(client.signals(items, lambda item: item, SPEC, ahead=1))
        client.release(timeout_s=DEADLINE_S)
    assert [len(signals) for _, signals in found] == [0, 2, 1]
    assert [signal.logits_BC.shape[0] for signal in found[1][1]] == [1, 2]


@pytest.mark.parametrize("ahead", [0, 2])
def test_no_more_than_asked_for_is_ahead(ahead: int) -> None:
    hosts = {"teacher": host_of(answers_of(teacher_parts()))}
    world = FakeWorld(hosts)
    taken = []

    def items() -> Iterator[Batch]:
        for number, batch in enumerate(batches()):
            taken.append(number)
            yield batch

    with serving(hosts):
        client = remote(world)
        for received, _ in enumerate(client.signals(items(), each, SPEC, ahead=ahead)):
            assert len(taken) == min(received + ahead + 1, 5)
        client.release(timeout_s=DEADLINE_S)


def test_teachers_take_turns_and_students_begin_at_different_ones() -> None:
    firsts = []
    for student in (0, 1):
        hosts = {f"teacher{n}": host_of(answers_of(teacher_parts())) for n in range(2)}
        world = FakeWorld(hosts)
        with serving(hosts):
            client = remote(world, student=student)
            list(client.signals(batches(), each, SPEC, ahead=1))
            for teaching in hosts.values():
                teaching.release(0)  # the fake hosts know one student only
        asked = [peer for peer, name in world.calls if name == "ask"]
        assert all(a != b for a, b in pairwise(asked))
        firsts.append(asked[0])
    assert firsts[0] != firsts[1]


def test_an_error_of_the_model_reaches_the_one_who_asked_and_nobody_else() -> None:
    compute = answers_of(teacher_parts())

    def fails_on_three_rows(request: Request, spec: SignalSpec) -> WireSignal:
        if len(request.input_ids_BL) == 3:
            raise ValueError("three rows are too many")
        return compute(request, spec)

    hosts = {"teacher": host_of(fails_on_three_rows)}
    with serving(hosts):
        client = remote(FakeWorld(hosts))
        stream = client.signals(batches(), each, SPEC, ahead=0)
        next(stream)
        next(stream)
        with pytest.raises(
            TeacherLost, match="teacher failed: ValueError: three rows are too many"
        ) as caught:
            next(stream)
        assert caught.value.number == 0
        assert isinstance(caught.value, Interrupted)  # the run can be resumed
        assert len(list(client.signals(batches()[3:], each, SPEC, ahead=0))) == 2
        client.release(timeout_s=DEADLINE_S)
    assert hosts["teacher"].answered == 4


def test_a_silent_teacher_is_lost_at_the_deadline_and_named() -> None:
    hosts = {"teacher0": host_of(answers_of(teacher_parts())), "teacher1": host_of(None)}
    with serving({"teacher0": hosts["teacher0"]}):  # nobody empties teacher1's queue
        client = remote(FakeWorld(hosts), student=1)
        stream = client.signals(batches(), each, SPEC, ahead=0)
        next(stream)
        client._deadline_s = 0.05
        with pytest.raises(TeacherLost, match="teacher1 did not answer within 0 s") as caught:
            next(stream)
        assert caught.value.number == 1
        hosts["teacher0"].release(0)


def test_a_dead_teacher_is_lost_when_it_is_called() -> None:
    world = FakeWorld({"teacher0": host_of(None), "teacher1": host_of(None)})
    world.dead = {"teacher1"}
    with pytest.raises(TeacherLost, match="lost its teacher: teacher1 cannot be called") as caught:
        list(remote(world).signals(batches(), each, SPEC, ahead=4))
    assert caught.value.number == 1


def test_a_teacher_that_does_not_hear_the_release_is_no_error() -> None:
    """Its lease will end; the others hear it all the same."""
    hosts = {"teacher0": host_of(None), "teacher1": host_of(None)}
    world = FakeWorld(hosts)
    world.dead = {"teacher0"}
    remote(world).release(timeout_s=DEADLINE_S)
    assert world.calls == [("teacher0", "release"), ("teacher1", "release")]
    assert hosts["teacher1"].serve(should_stop=never) is True


def test_leases_are_renewed_until_the_release() -> None:
    hosts = {"teacher": host_of(answers_of(teacher_parts()))}
    world = FakeWorld(hosts)
    renewed = threading.Event()
    hosts["teacher"].renew = renewed.set  # type: ignore[method-assign]
    client = RemoteTeacher(cast(RpcWorld, world), ["teacher"], student=0, deadline_s=DEADLINE_S, lease_s=0.04)
    assert renewed.wait(10)
    client.release(timeout_s=DEADLINE_S)
    assert ("teacher", "release") in world.calls


def test_a_host_ends_when_all_students_let_go() -> None:
    teaching = host_of(None, students=2)
    teaching.release(0)
    teaching.release(0)  # twice the same is not everybody
    stopped = threading.Event()
    stopped.set()
    assert teaching.serve(should_stop=stopped.is_set) is False
    teaching.release(1)
    assert teaching.serve(should_stop=never) is True


def test_a_host_leaves_when_its_lease_runs_out() -> None:
    assert host_of(None, lease_s=0.0).serve(should_stop=never) is False


def test_calls_prolong_the_lease(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("distill_dist.teacher.host.time.monotonic", lambda: now)
    teaching = host_of(lambda request, spec: cast(WireSignal, "answer"), lease_s=10.0)
    asks = 0

    def later() -> bool:
        """Asked whenever the queue was empty: nine seconds pass, then somebody calls."""
        nonlocal now, asks
        now, asks = now + 9.0, asks + 1
        if asks == 1:
            teaching.renew()
        elif asks == 2:
            teaching.put(pack_request(batches()[0], labels=False), SPEC)
        return asks > 5

    assert teaching.serve(should_stop=later) is False
    assert asks == 4  # two calls prolonged it; then 9 s are within the lease and 18 s are not
    assert teaching.answered == 1


def test_remote_functions_reach_the_open_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "_host", None)
    with pytest.raises(AssertionError, match="open_host comes before"):
        host.renew()
    teaching = host_of(lambda request, spec: cast(WireSignal, "answer"), students=1)
    host.open_host(teaching)
    assert host.describe() == {"parameters": 7}
    answer = host.ask(pack_request(batches()[0], labels=False), SPEC)
    assert not answer.done()  # the loop computes, not the caller's thread
    host.renew()
    host.release(0)
    teaching._students.add(0)
    stop = iter([True])
    assert teaching.serve(should_stop=lambda: next(stop)) is False
    assert answer.value() == "answer"

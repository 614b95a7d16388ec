"""Host and client with the RPC world replaced by direct calls: shares, merging, losses, deadlines, leases."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from typing import Any, cast

import pytest
import torch
from tiny_encoders import ragged_batch, take_rows, tiny_encoder
from torch.futures import Future

from distill_dist.comm.rpc_world import CallFailed, Reply, RpcWorld
from distill_dist.errors import Interrupted, UserError
from distill_dist.models.encoder import EncoderParts, encoder_parts
from distill_dist.records import Batch, NoiseSpec, SignalSpec, TeacherSignal
from distill_dist.teacher import host
from distill_dist.teacher.client import RemoteTeacher
from distill_dist.teacher.host import TeacherHost
from distill_dist.teacher.local import LocalTeacher, TeacherLost
from distill_dist.teacher.row_codec import WireTypes
from distill_dist.teacher.row_computer import RowComputer
from distill_dist.teacher.signal_cache import SignalCache
from distill_dist.teacher.wire import Request, pack_request

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


Compute = Callable[[Request, SignalSpec], list[bytes]]


def computer(types: WireTypes | None = None, fingerprint: str = "f" * 64) -> RowComputer:
    return RowComputer(
        teacher_parts(), torch.device("cpu"), types=types or WireTypes(), fingerprint=fingerprint
    )


def host_of(
    compute: Any = None,
    *,
    students: int = 1,
    lease_s: float = 60.0,
    cache_bytes: int = 1 << 20,
    batch_tokens: int = 4096,
    queue_tokens: int = 1 << 20,
    about: RowComputer | None = None,
    **more: Any,
) -> TeacherHost:
    about = about or computer()
    return TeacherHost(
        about if compute is None else compute,
        SignalCache(cache_bytes, None, context=bytes(32)),
        students=students,
        lease_s=lease_s,
        batch_tokens=batch_tokens,
        queue_tokens=queue_tokens,
        description=about.describe(),
        **more,
    )


def never() -> bool:
    return False


class FakeWorld:
    """Calls hosts directly, by the names that RPC would use; remembers who was called with what."""

    def __init__(self, hosts: dict[str, TeacherHost]) -> None:
        self.members = hosts
        self.calls: list[tuple[str, str]] = []
        self.dead: set[str] = set()
        self.generation = 0
        self.asked = 0  # the generation that somebody asked for

    is_last = False

    @property
    def hosts(self) -> tuple[str, ...]:
        return tuple(sorted(self.members))

    def has_changed(self, generation: int) -> bool:
        return self.asked > generation

    def await_standing(self, generation: int, timeout_s: float) -> bool:
        """Who waits here gets a world of all that live, if one was asked for."""
        if self.asked <= generation or timeout_s <= 0:
            time.sleep(min(0.02, timeout_s))
            return False
        self.generation, self.dead = self.asked, set()
        return True

    def call(self, peer: str, function: Callable[..., Any], *args: Any) -> Reply:
        name = getattr(function, "__name__", "?")
        self.calls.append((peer, name))
        if peer in self.dead:
            raise CallFailed(f"{peer} cannot be called: gone")
        target = self.members[peer]
        if name == "ask":
            return Reply(peer, target.put(*args))
        done: Future[Any] = Future()
        done.set_result(target.description if name == "describe" else getattr(target, name)(*args))
        return Reply(peer, done)


def remote(
    world: FakeWorld,
    *,
    student: int = 0,
    deadline_s: float = DEADLINE_S,
    patience_s: float = DEADLINE_S,
    **more: Any,
) -> RemoteTeacher:
    return RemoteTeacher(
        cast(RpcWorld, world),
        names=world.hosts,
        student=student,
        deadline_s=deadline_s,
        patience_s=patience_s,
        lease_s=3600.0,
        **more,
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


def signals_of(
    client: RemoteTeacher | LocalTeacher, spec: SignalSpec = SPEC, *, ahead: int = 2
) -> list[TeacherSignal]:
    return [signal for _, (signal,) in client.signals(batches(), each, spec, ahead=ahead)]


def hosts_named(number: int, **more: Any) -> dict[str, TeacherHost]:
    return {f"teacher{n}": host_of(**more) for n in range(number)}


@contextmanager
def client_of(hosts: dict[str, TeacherHost], **more: Any) -> Iterator[RemoteTeacher]:
    """A client of hosts that serve; all end well."""
    world = FakeWorld(hosts)
    with serving(hosts) as ended:
        client = remote(world, **more)
        yield client
        client.release(timeout_s=DEADLINE_S)
        for teaching in hosts.values():
            teaching.release(0)  # a lost one hears nothing
    assert ended == [True] * len(hosts)


@pytest.mark.parametrize("ahead", [0, 1, 3, 99])
@pytest.mark.parametrize("teachers", [1, 2, 3])
def test_remote_and_local_teachers_say_the_same(ahead: int, teachers: int) -> None:
    with client_of(hosts_named(teachers)) as client:
        found = list(client.signals(batches(), each, SPEC, ahead=ahead))
        assert client.describe() == {"parameters": sum(p.numel() for p in teacher_parts().model.parameters())}
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


# ------------------------------------------------------------------ merging


def queued(teaching: TeacherHost, questions: list[Batch], spec: SignalSpec = SPEC) -> list[Future[Any]]:
    """Questions that wait before the host's loop runs; keys are the rows' numbers."""
    found = []
    for batch in questions:
        request = pack_request(batch, labels=spec.needs_labels)
        keys = tuple(f"{spec.signal} {row}".encode().rjust(16) for row in batch.ids_B.tolist())
        found.append(teaching.put(replace(request, keys_B=keys), spec))
    return found


def serve_once(teaching: TeacherHost) -> None:
    teaching.release(0)
    teaching._students.add(0)
    stop = iter([True])
    assert teaching.serve(should_stop=lambda: next(stop)) is False


def test_questions_that_wait_are_computed_together_and_answered_as_if_alone() -> None:
    together, alone = host_of(), host_of(batch_tokens=1, cache_bytes=0)
    futures = queued(together, batches())
    assert not any(future.done() for future in futures), "the loop computes, not the caller's thread"
    serve_once(together)
    assert together.counters()["batches"] == 1
    assert together.counters()["computed_rows"] == 6, "two rows are asked for twice, one three times"
    expected = queued(alone, batches())
    serve_once(alone)
    assert alone.counters()["batches"] > 5
    for future, other in zip(futures, expected, strict=True):
        assert [bytes(row) for row in future.value().rows()] == [bytes(row) for row in other.value().rows()]


def test_questions_of_different_kinds_wait_for_each_other_but_do_not_mix() -> None:
    teaching = host_of()
    logits = SignalSpec()
    futures = [*queued(teaching, batches()[:2]), *queued(teaching, batches()[1:2], logits)]
    serve_once(teaching)
    assert teaching.counters()["batches"] == 2
    sizes = [future.value().sizes_B.tolist() for future in futures]
    assert max(sizes[2]) < min(sizes[1])


def test_who_asks_a_full_host_asks_again_and_nothing_is_lost() -> None:
    hosts = hosts_named(2, queue_tokens=10, cache_bytes=0)
    with client_of(hosts) as client:
        found = signals_of(client, ahead=99)
    local = LocalTeacher(teacher_parts(), torch.device("cpu"))
    for ours, theirs in zip(found, signals_of(local), strict=True):
        assert_equal(ours, theirs)
    assert sum(teaching.counters().get("refused", 0) for teaching in hosts.values()) > 0
    assert all(teaching.counters()["waiting_tokens"] == 0 for teaching in hosts.values())


class Scarce:
    """A device with room for ``rows`` rows."""

    def __init__(self, rows: int, error: Exception) -> None:
        self.rows, self.error, self.about = rows, error, computer()
        self.sizes: list[int] = []

    def __call__(self, request: Request, spec: SignalSpec) -> list[bytes]:
        self.sizes.append(len(request.keys_B))
        if len(request.keys_B) > self.rows:
            raise self.error
        return self.about(request, spec)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        MemoryError(),
        RuntimeError(
            "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes"
        ),
    ],
    ids=["cuda", "python", "torch on cpu"],
)
def test_out_of_memory_halves_the_batch_for_good(error: Exception, caplog: pytest.LogCaptureFixture) -> None:
    scarce = Scarce(2, error)
    teaching = host_of(scarce, cache_bytes=0)
    futures = queued(teaching, batches())
    serve_once(teaching)
    assert all(isinstance(future.value().sizes_B, torch.Tensor) for future in futures)
    assert scarce.sizes == [6, 3, 1, 2, 3, 1, 2]
    assert "out of memory at 72 tokens a batch: 36 from here on (teacher.batch_tokens)" in caplog.text
    again = queued(teaching, batches())
    begin = len(scarce.sizes)
    serve_once(teaching)
    assert max(scarce.sizes[begin:]) <= 2, "it was learned"
    assert all(future.done() for future in again)


def test_a_row_alone_that_does_not_fit_belongs_to_who_asked() -> None:
    teaching = host_of(Scarce(0, MemoryError()))
    (future,) = queued(teaching, batches()[:1])
    serve_once(teaching)
    with pytest.raises(RuntimeError, match="MemoryError"):
        future.value()


def test_an_error_of_the_model_reaches_those_who_asked_and_nobody_else() -> None:
    about = computer()

    def fails_on_long_rows(request: Request, spec: SignalSpec) -> list[bytes]:
        if request.input_ids_BL.shape[1] == 12:
            raise ValueError("twelve tokens are too many")
        return about(request, spec)

    teaching = host_of(fails_on_long_rows, batch_tokens=12)
    futures = queued(teaching, batches())
    serve_once(teaching)
    with pytest.raises(RuntimeError, match="ValueError: twelve tokens are too many"):
        futures.pop(2).value()
    assert all(len(future.value().rows()) > 0 for future in futures)


# ------------------------------------------------------------------ losses


def expect_all(found: list[TeacherSignal]) -> None:
    local = LocalTeacher(teacher_parts(), torch.device("cpu"))
    for ours, theirs in zip(found, signals_of(local), strict=True):
        assert_equal(ours, theirs)


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
    assert caught.value.number in (0, 1)
    with pytest.raises(TeacherLost):
        signals_of(client)


def test_a_host_that_fails_is_not_asked_again() -> None:
    def fails(request: Request, spec: SignalSpec) -> list[bytes]:
        raise ValueError("broken")

    hosts = {"teacher0": host_of(), "teacher1": host_of(fails)}
    with client_of(hosts) as client:
        expect_all(signals_of(client))
        assert client._hosts == ["teacher0"]


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
        remote(world)


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
    monkeypatch.setattr("distill_dist.teacher.client.STOP_S", 0.3)
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


def test_patience_ends() -> None:
    hosts = hosts_named(1)
    world = FakeWorld(hosts)
    client = remote(world, deadline_s=0.1, patience_s=0.4)
    hosts["teacher0"].put = lambda *_: Future()  # type: ignore[method-assign, assignment]
    begin = time.monotonic()
    with pytest.raises(TeacherLost, match=r"teacher0 did not answer within"):
        signals_of(client)
    assert 0.4 <= time.monotonic() - begin < 5
    assert ("teacher0", "renew") in world.calls, "it gave signs of life"


def test_a_teacher_that_does_not_hear_the_release_is_no_error() -> None:
    """Its lease will end; the others hear it all the same."""
    hosts = hosts_named(2)
    world = FakeWorld(hosts)
    client = remote(world)
    world.dead = {"teacher0"}
    client.release(timeout_s=DEADLINE_S)
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


def test_a_host_ends_when_all_students_let_go() -> None:
    teaching = host_of(students=2)
    teaching.release(0)
    teaching.release(0)  # twice the same is not everybody
    stopped = threading.Event()
    stopped.set()
    assert teaching.serve(should_stop=stopped.is_set) is False
    teaching.release(1)
    assert teaching.serve(should_stop=never) is True


def test_a_host_leaves_when_its_lease_runs_out() -> None:
    assert host_of(lease_s=0.0).serve(should_stop=never) is False


def test_calls_prolong_the_lease(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    teaching = host_of(lease_s=10.0)
    asks = 0

    def later() -> bool:
        """Asked whenever the queue was empty: nine seconds pass, then somebody calls."""
        nonlocal now, asks
        now, asks = now + 9.0, asks + 1
        if asks == 1:
            teaching.renew()
        elif asks == 2:
            queued(teaching, batches()[:1])
        return asks > 5

    monkeypatch.setattr("distill_dist.teacher.host.time.monotonic", lambda: now)
    teaching.renew()
    assert teaching.serve(should_stop=later) is False
    assert asks == 4  # two calls prolonged it; then 9 s are within the lease and 18 s are not
    assert teaching.answered == 1


def test_a_host_rests_once_when_everything_is_cached(monkeypatch: pytest.MonkeyPatch) -> None:
    now, asks, rests = 0.0, 0, []
    monkeypatch.setattr("distill_dist.teacher.host.time.monotonic", lambda: now)
    teaching = host_of(lease_s=1000.0, rest=lambda: rests.append(now), rest_after_s=25.0)

    def later() -> bool:
        """Asked whenever the queue was empty: ten seconds pass."""
        nonlocal now, asks
        now, asks = now + 10.0, asks + 1
        if asks in (1, 2, 6):
            queued(teaching, batches()[:1])  # cached from the second time on
        if asks == 8:
            queued(teaching, batches()[1:2])
        return asks > 12

    assert teaching.serve(should_stop=later) is False
    assert rests == [40.0, 110.0]


def test_remote_functions_reach_the_open_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "_host", None)
    with pytest.raises(AssertionError, match="open_host comes before"):
        host.renew()
    teaching = host_of(students=1)
    host.open_host(teaching)
    assert host.describe() == computer().describe()
    request = replace(pack_request(batches()[0], labels=True), keys_B=(bytes(16),))
    answer = host.ask(request, SPEC)
    assert not answer.done()
    host.renew()
    serve_once(teaching)
    (row,) = answer.value().rows()
    assert host.counters()["answered"] == 1
    again = host.ask(request, SPEC)
    assert again.done(), "from the cache, at once"
    assert again.value().rows() == [row]
    host.dismiss()
    assert teaching.serve(should_stop=never) is False

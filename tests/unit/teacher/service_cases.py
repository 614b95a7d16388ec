"""Hosts and clients with the RPC world replaced by direct calls."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from typing import Any, cast

import torch
from tiny_encoders import ragged_batch, take_rows, tiny_encoder
from torch.futures import Future

from distill_dist.comm.rpc_world import CallFailed, Reply, RpcWorld
from distill_dist.models.encoder import EncoderParts, encoder_parts
from distill_dist.records import Batch, NoiseSpec, SignalSpec, TeacherSignal
from distill_dist.teacher.client import RemoteTeacher
from distill_dist.teacher.host import TeacherHost
from distill_dist.teacher.local import LocalTeacher
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


# what a host's worker would be asked about again and again
PROBE = pack_request(ragged_batch((5, 9, 3), seed=4), labels=False)
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
    cache: SignalCache | None = None,
    **more: Any,
) -> TeacherHost:
    about = about or computer()
    return TeacherHost(
        about if compute is None else compute,
        SignalCache(cache_bytes, None, context=bytes(32)) if cache is None else cache,
        students=students,
        lease_s=lease_s,
        batch_tokens=batch_tokens,
        queue_tokens=queue_tokens,
        description=about.introduce(PROBE),
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
        self.hung: set[str] = set()  # they answer nothing
        self.generation = 0
        self.asked = 0  # the generation that somebody asked for
        self.down: dict[str, str] = {}  # who stood down, and why

    is_last = False

    @property
    def hosts(self) -> tuple[str, ...]:
        return tuple(sorted(self.members))

    def has_changed(self, generation: int) -> bool:
        return self.asked > generation

    def stood_down(self, names: Iterable[str]) -> dict[str, str]:
        return {name: self.down[name] for name in names if name in self.down}

    def where(self, peer: str) -> str:
        return f"{peer} on this machine"

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
        if peer in self.hung:
            return Reply(peer, Future())
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
    names: tuple[str, ...] | None = None,
    **more: Any,
) -> RemoteTeacher:
    return RemoteTeacher(
        cast(RpcWorld, world),
        names=world.hosts if names is None else names,
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


def expect_all(found: list[TeacherSignal]) -> None:
    local = LocalTeacher(teacher_parts(), torch.device("cpu"))
    for ours, theirs in zip(found, signals_of(local), strict=True):
        assert_equal(ours, theirs)

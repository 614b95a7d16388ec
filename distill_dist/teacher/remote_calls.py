"""What students call in the process of a host: RPC runs these functions by name, in its own threads."""

from __future__ import annotations

from typing import Any

from torch.futures import Future

from distill_dist.comm.rpc_world import answered_later
from distill_dist.records import SignalSpec
from distill_dist.teacher.host import TeacherHost
from distill_dist.teacher.wire import Reaction, Request

_host: TeacherHost | None = None


def open_host(host: TeacherHost) -> None:
    """Let remote calls reach ``host``; before the RPC world is joined."""
    global _host
    _host = host


def _opened() -> TeacherHost:
    assert _host is not None, "open_host comes before the RPC world"
    return _host


@answered_later
def ask(request: Request, spec: SignalSpec) -> Future[Reaction | None]:
    """Remote: the teacher's encoded signal of every row; None: ask again later."""
    return _opened().put(request, spec)


def renew() -> None:
    """Remote: prolong the lease."""
    _opened().renew()


def release(student: int) -> None:
    """Remote: this student is done."""
    _opened().release(student)


def dismiss() -> None:
    """Remote: the run ended early for every student."""
    _opened().dismiss()


def describe() -> dict[str, Any]:
    """Remote: who teaches here (parameters, fingerprint) and how its rows are encoded."""
    return _opened().description


def counters() -> dict[str, int]:
    """Remote: what the host has done so far."""
    return _opened().counters()

"""What the processes of one sharded teacher tell each other through the run's store.

Its workers start together, as one attempt, and end together: a process group does not survive the loss of a member.
The leader's host counts the attempts; whoever sees that one cannot go on breaks it, for everybody.
"""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, ParamSpec, TypeVar

import torch.distributed as dist

from distill_dist.comm.rendezvous import Store
from distill_dist.comm.silence import clone_store

P = ParamSpec("P")
R = TypeVar("R")
# How often one looks whether something changed; seconds.
WATCH_S = 0.2
# The store answers in microseconds, a model loads for seconds.
_LOOK_S = 0.05


@dataclass(frozen=True)
class Broken:
    """Why an attempt ended: ``refused``, the user's error; ``memory`` or ``model``, a request; ``lost``, a member."""

    kind: Literal["refused", "memory", "model", "lost"]
    reason: str


class AttemptBroken(RuntimeError):
    """Somebody broke the attempt that one waits in."""


class StoreGone(ConnectionError):
    """Student 0 has ended, and the store that lives in it."""


def _asking(method: Callable[P, R]) -> Callable[P, R]:
    @functools.wraps(method)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return method(*args, **kwargs)
        except dist.DistError as error:
            raise StoreGone(f"student 0 is gone: {str(error).splitlines()[0]}") from error

    return wrapped


class Attempts:
    """The attempts of the replica that teacher ``leader`` leads. Every method but ``clone`` raises StoreGone."""

    def __init__(self, store: Store, *, leader: int) -> None:
        """``store`` is the run's; one thread uses it at a time."""
        self._run_store, self._leader = store, leader
        self._store = dist.PrefixStore(f"replica/{leader}", store)

    def clone(self) -> Attempts:
        """The same for another thread: a wait in one blocks the other."""
        return Attempts(clone_store(self._run_store), leader=self._leader)

    @_asking
    def begin(self) -> int:
        """Start another one, by the leader's host: its number, from 1."""
        return int(self._store.add("attempt", 1))

    @_asking
    def newest(self) -> int:
        """Its number; 0 before the first."""
        return int(self._store.add("attempt", 0))

    @_asking
    def break_(self, number: int, broken: Broken) -> None:
        """End it; who comes first gives the reason."""
        self._store.compare_set(f"{number}/broken", "", json.dumps([broken.kind, broken.reason]))

    @_asking
    def broken(self, number: int) -> Broken | None:
        """Why it ended; None: it has not."""
        key = f"{number}/broken"
        return Broken(*json.loads(self._store.get(key))) if self._store.check([key]) else None

    @_asking
    def leave(self, *, done: bool) -> None:
        """No attempt will follow: the leader has left, ``done`` or too early."""
        self._store.set("left", json.dumps(done))

    @_asking
    def left(self) -> bool | None:
        """What ``leave`` said; None: nothing yet."""
        return bool(json.loads(self._store.get("left"))) if self._store.check(["left"]) else None

    @_asking
    def have_loaded(self, number: int, *, size: int) -> bool:
        """Whether all members of it have got so far."""
        return number > 0 and self._store.check([f"{number}/loaded/{member}" for member in range(size)])

    # ------------------------------------------------------------------ in the workers

    @_asking
    def meet(self, number: int, *, member: int, size: int, teacher: str, timeout_s: float) -> None:
        """Return when all of ``size`` members have loaded the same ``teacher``, a fingerprint.

        Raises AttemptBroken, also after ``timeout_s``: then it is broken for all.
        """
        self._store.set(f"{number}/loaded/{member}", teacher)
        deadline = time.monotonic() + timeout_s
        missing = list(range(size))
        while missing := [m for m in missing if not self._store.check([f"{number}/loaded/{m}"])]:
            self._check(number)
            if time.monotonic() > deadline:
                self.break_(
                    number, Broken("lost", f"members {missing} did not load within {timeout_s:.0f} s")
                )
            time.sleep(_LOOK_S)
        others = [m for m in range(size) if self._store.get(f"{number}/loaded/{m}").decode() != teacher]
        if others:
            text = (
                f"member {others[0]} of the teacher has another model than member {member}: teacher.path must be one "
                "model on all nodes"
            )
            self.break_(number, Broken("refused", text))
        self._check(number)

    def _check(self, number: int) -> None:
        broken = self.broken(number)
        if broken is not None:
            raise AttemptBroken(broken.reason)

    def group_store(self, number: int) -> Any:
        """Where the process group of that attempt meets."""
        return dist.PrefixStore(f"{number}/group", self._store)

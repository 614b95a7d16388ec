"""The RPC world that students and hosts share: students call, hosts answer.

A host that died is started again while the run goes on; the world is then formed anew, as a new generation. Nobody can
join a world that stands (FACTS), so all leave it and meet again, in a thread of its own: a student that waits in a
collective for another one must not keep that one waiting here.

RPC has no authentication and unpickles what it is sent (SECURITY.md): private networks only.
"""

from __future__ import annotations

import contextlib
import json
import logging
import socket
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from typing import Any
from urllib.parse import parse_qsl, urlparse

import torch.distributed as dist
from torch.distributed import rpc
from torch.futures import Future

from distill_dist.comm.rendezvous import free_port
from distill_dist.comm.silence import clone_store, limit_silence
from distill_dist.comm.stood_down import stood_down

answered_later = rpc.functions.async_execution
_log = logging.getLogger(__name__)
# How often a member looks whether the world is to be formed anew; seconds.
WATCH_S = 0.2
# How long the students wait for hosts that do not come: those are left out, and ask for another world when they can.
REFORM_S = 5.0
# How long a call waits for a world that is being formed.
CALL_S = 1.0
# How long members that have all come wait at most for each other at one point of the way in, where one may die.
ENTER_S = 4 * REFORM_S
_SCHEME = "distill"


def _rendezvous(url: str, **_: Any) -> Iterator[tuple[dist.Store, int, int]]:
    """Torch's own for tcp:// waits 30 minutes, whatever its options say, for a member that died on the way in."""
    place = urlparse(url)
    query = dict(parse_qsl(place.query))
    rank, size = int(query["rank"]), int(query["world_size"])
    assert place.hostname is not None
    assert place.port is not None
    store = dist.TCPStore(
        place.hostname,
        place.port,
        world_size=size,
        is_master=rank == 0,
        timeout=timedelta(seconds=float(query["timeout_s"])),
        wait_for_workers=False,
    )
    limit_silence(place.port, ENTER_S)
    yield store, rank, size


dist.register_rendezvous_handler(_SCHEME, _rendezvous)  # type: ignore[attr-defined]


def enter_s(generation: int, failed: int) -> float:
    """How long the members of a world wait for each other on the way in, after ``failed`` that nobody entered.

    Torch has several points where all wait for all, none of which can be left before its time: a member that dies
    between two of them costs the others twice that much, while they are asked and do not answer. So one that is formed
    anew begins with little, which doubles where the machine was too slow for it.
    """
    return ENTER_S if generation == 0 else min(ENTER_S, REFORM_S * 2**failed)


class CallFailed(RuntimeError):
    """A remote call did not come back: the peer died, raised, or missed its deadline."""


class WorldChanged(CallFailed):
    """The world is formed anew: nothing is known of the peer, and the call has to be made again."""


class Reply:
    """The answer to one remote call, still under way."""

    def __init__(self, peer: str, future: Future[Any], is_current: Callable[[], bool] = lambda: True) -> None:
        """Watch ``future``, an answer of ``peer``, of a world that ``is_current``."""
        self._peer, self._future, self._is_current = peer, future, is_current
        self._done = threading.Event()
        # A torch future has no wait with a timeout of its own.
        future.add_done_callback(lambda _: self._done.set())

    def wait(self, timeout_s: float) -> Any:
        """The answer. Raises CallFailed, naming the peer, after ``timeout_s`` seconds or when the peer is gone."""
        deadline = time.monotonic() + timeout_s
        while not self._done.wait(min(WATCH_S, max(0.0, deadline - time.monotonic()))):
            self._check_current()
            if time.monotonic() >= deadline:
                raise CallFailed(f"{self._peer} did not answer within {timeout_s:.0f} s")
        try:
            found = self._future.value()
        except Exception as error:  # torch raises what the peer raised, in its own type
            self._check_current()
            raise CallFailed(f"{self._peer} failed: {_reason(error)}") from error
        if isinstance(found, Exception):
            # What an answer that is given later was set to fail with arrives as a value (torch 2.13).
            raise CallFailed(f"{self._peer} failed: {_reason(found)}") from found
        return found

    def _check_current(self) -> None:
        if not self._is_current():
            raise WorldChanged(f"{self._peer} is met again in another world")

    def is_done_within(self, timeout_s: float) -> bool:
        """Whether ``wait`` returns or raises at once, now or before ``timeout_s`` seconds are over."""
        deadline = time.monotonic() + timeout_s
        while not self._done.wait(min(WATCH_S, max(0.0, deadline - time.monotonic()))):
            if not self._is_current():
                return True
            if time.monotonic() >= deadline:
                return False
        return True


def _reason(error: Exception) -> str:
    """The line of a remote error that says something; torch puts `On WorkerInfo(…)` before and a traceback after."""
    lines = [line for line in str(error).splitlines() if line.strip() and "On WorkerInfo(" not in line]
    return lines[0].strip() if lines else repr(error)


class RpcWorld:
    """This process's membership of the RPC world, with a port of its own in every generation."""

    def __init__(
        self,
        store: dist.Store,
        *,
        name: str,
        students: tuple[str, ...],
        hosts: tuple[str, ...],
        address: str,
        timeout_s: float,
        replaces: bool = False,
    ) -> None:
        """Join as ``name``; the first of ``students`` picks the port at ``address``.

        Waits at most ``timeout_s`` seconds for all. ``replaces``: a host of this name was in the world and died, so
        the others have to come and meet this one.
        """
        self._name, self._students, self._all_hosts = name, students, hosts
        self._address, self._timeout_s = address, timeout_s
        # a store per thread: a wait in one blocks the others
        self._store, self._asking = clone_store(store), clone_store(store)
        self._asking_lock, self._standing = threading.Lock(), threading.Lock()
        self.generation = -1
        self.hosts: tuple[str, ...] = ()
        self._at: dict[str, str] = {}  # name of the machine of each member
        self._store_is_gone = False
        self._leaving = threading.Event()
        self._failed = 0  # worlds in a row that were not entered
        if replaces:
            self._store.add("rpc/generation", 1)
        self._join()
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._watcher.start()

    def call(self, peer: str, function: Callable[..., Any], *args: Any) -> Reply:
        """Start ``function(*args)`` at ``peer``; the deadline is the waiter's (Reply.wait)."""
        # The watcher holds it while a world is formed, which may wait for a student that is dead: the caller has
        # deadlines of its own.
        if not self._standing.acquire(timeout=CALL_S):
            raise WorldChanged(f"{peer} is met again in another world")
        try:
            generation = self.generation
            future = rpc.rpc_async(f"{peer}-{generation}", function, args=args, timeout=0)
        except RuntimeError as error:
            if self.has_changed(generation):
                raise WorldChanged(f"{peer} is met again in another world") from error
            raise CallFailed(f"{self.where(peer)} cannot be called: {str(error).splitlines()[0]}") from error
        finally:
            self._standing.release()
        return Reply(self.where(peer), future, lambda: not self.has_changed(generation))

    def where(self, peer: str) -> str:
        """``peer`` and its machine, for messages."""
        return f"{peer} on {self._at[peer]}" if peer in self._at else peer

    def has_changed(self, generation: int) -> bool:
        """Whether another generation than ``generation`` was asked for; where the store is gone, none ever will be."""
        if generation != self.generation:
            return True
        with self._asking_lock:
            if self._store_is_gone:
                return False
            try:
                return int(self._asking.add("rpc/generation", 0)) > generation
            except dist.DistError:
                self._store_is_gone = (
                    True  # what it did not answer in time must not be taken for another answer
                )
                return False

    def await_standing(self, generation: int, timeout_s: float) -> bool:
        """Whether a later generation than ``generation`` stands before ``timeout_s`` seconds are over."""
        deadline = time.monotonic() + timeout_s
        while self.generation <= generation:
            if time.monotonic() >= deadline or self.is_last:
                return False
            time.sleep(0.02)
        return True

    def stood_down(self, names: Iterable[str]) -> dict[str, str]:
        """Hosts among ``names`` that will not come again, and why."""
        with self._asking_lock:
            return stood_down(self._asking, names)

    @property
    def is_last(self) -> bool:
        """Whether no other generation can follow: the store is gone, and student 0 with it."""
        return not self._watcher.is_alive()

    def leave(self) -> None:
        """Leave without waiting for anybody, dead or alive."""
        self._leaving.set()
        # a thread inside torch's C++ when the interpreter ends takes the process down with SIGABRT
        self._watcher.join(self._timeout_s)
        with self._standing, contextlib.suppress(RuntimeError):
            rpc.shutdown(graceful=False)

    # ------------------------------------------------------------------ forming

    def _watch(self) -> None:
        while not self._leaving.wait(WATCH_S):
            try:
                if int(self._store.add("rpc/generation", 0)) <= self.generation:
                    continue
                with self._standing:
                    if self._leaving.is_set():
                        return
                    with contextlib.suppress(RuntimeError):
                        rpc.shutdown(graceful=False)
                    self._join()
            except (dist.DistError, TimeoutError) as error:
                _log.debug("the world is formed no more: %s", error)
                return

    def _join(self) -> None:
        """Enter the newest generation. Raises TimeoutError."""
        deadline = time.monotonic() + self._timeout_s
        while True:
            generation = int(self._store.add("rpc/generation", 0))
            formed = self._form(generation, deadline)
            if formed is None:
                continue  # a later one was asked for
            if self._name in formed["names"] and self._enter(generation, formed):
                self._failed = 0
                self.hosts = tuple(name for name in formed["names"] if name in self._all_hosts)
                self._at = formed["at"]
                self.generation = generation
                _log.info("world %d: %s", generation, ", ".join(formed["names"]))
                return
            self._failed += 1
            # it was formed without us, or somebody died on the way in
            if int(self._store.add("rpc/generation", 0)) == generation:
                self._store.add("rpc/generation", 1)

    def _form(self, generation: int, deadline: float) -> dict[str, Any] | None:
        """Who meets in ``generation`` and at which port; None where a later one was asked for. Raises TimeoutError."""
        self._store.set(f"rpc/{generation}/here/{self._name}", socket.gethostname())
        key = f"rpc/{generation}/formed"
        hosts_until = None
        while not self._store.check([key]):
            if int(self._store.add("rpc/generation", 0)) > generation:
                return None
            if self._leaving.is_set():
                raise TimeoutError(f"{self._name} leaves while the world is formed")
            names = [*self._students, *self._all_hosts]
            here = [name for name in names if self._store.check([f"rpc/{generation}/here/{name}"])]
            missing = [name for name in names if name not in here]
            if time.monotonic() > deadline:
                raise TimeoutError(f"{self._name} waited {self._timeout_s:.0f} s for {', '.join(missing)}")
            if self._name == self._students[0] and not any(name in self._students for name in missing):
                # every host has to come to the first world
                hosts_until = hosts_until or (time.monotonic() + REFORM_S if generation else deadline)
                if not missing or time.monotonic() > hosts_until:
                    at = {name: self._store.get(f"rpc/{generation}/here/{name}").decode() for name in here}
                    formed = {
                        "names": here,
                        "at": at,
                        "port": free_port(self._address),
                        "within_s": enter_s(generation, self._failed),
                    }
                    self._store.set(key, json.dumps(formed))
                    return formed
            time.sleep(0.02)
        found: dict[str, Any] = json.loads(self._store.get(key))
        return found

    def _enter(self, generation: int, formed: dict[str, Any]) -> bool:
        """Whether the world stands now; not when a member died on the way in."""
        # Torch counts worlds per process, and members whose counts differ wait for each other for ever; names differ
        # by generation, because torch also counts meetings by the names of those who met.
        rpc._init_counter = generation  # type: ignore[attr-defined]
        within_s = formed["within_s"]
        rpc.constants.DEFAULT_PROCESS_GROUP_TIMEOUT = timedelta(seconds=within_s)  # 24 days otherwise
        options = rpc.TensorPipeRpcBackendOptions(
            init_method=f"{_SCHEME}://{self._address}:{formed['port']}?timeout_s={within_s}",
            rpc_timeout=within_s,
            num_worker_threads=4,
            # Plain sockets: the probing for InfiniBand fails on some clouds, and shared memory would leave
            # segments behind when a rank is killed.
            _transports=["uv"],
            _channels=["basic"],
        )
        names = formed["names"]
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch announces that RPC is in maintenance mode
                rpc.init_rpc(
                    f"{self._name}-{generation}",
                    rank=names.index(self._name),
                    world_size=len(names),
                    rpc_backend_options=options,
                )
        except RuntimeError as error:
            _log.warning("the world of %s was not formed: %s", ", ".join(names), str(error).splitlines()[0])
            with contextlib.suppress(RuntimeError):
                rpc.shutdown(graceful=False)
            return False
        return True

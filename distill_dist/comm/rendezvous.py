"""The store through which all launched processes find each other: one port, the launcher's."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from queue import SimpleQueue

import torch.distributed as dist
from torch.distributed import Store as Store

from distill_dist.comm.environment import LaunchEnvironment
from distill_dist.comm.members import join
from distill_dist.comm.silence import limit_silence
from distill_dist.errors import Interrupted, UserError, shared_error

# Longest that a failed rank 0 keeps the store open for the others; they may still be loading their models.
LINGER_S = 30.0


def connect_store(
    launch: LaunchEnvironment,
    *,
    timeout_s: float,
    silence_s: float = 60.0,
    run: str = "",
    settings: str = "",
    mark: str = "",
    stopped: Callable[[], bool] = lambda: False,
) -> Store:
    """The store at the launcher's address once every rank has joined. Raises UserError naming the missing ranks.

    ``run`` names the run: where its port is another run's, whose rank 0 answers there, it must not disturb that.
    ``settings`` must be the same on all ranks, which learn rank 0's ``mark``. A question to the store fails after
    ``silence_s`` without an answer. Raises Interrupted once ``stopped`` says so.
    """
    wait = _Wait(time.monotonic() + timeout_s, timeout_s, stopped)
    scoped = _scoped(_open_store(launch, wait, silence_s), run, launch)
    if scoped.add(f"joining/{launch.rank}", 1) > 1:
        raise UserError(
            f"a rank {launch.rank} has joined at {launch.master_address}:{launch.master_port} before: the port belongs "
            "to another start of this run; wait for its end, or take another port (deepspeed --master_port N)"
        )
    scoped.set(f"settings/{launch.rank}", settings)
    join(scoped, launch, mark=mark)
    _await_all(scoped, launch, wait)
    others = [r for r in range(launch.world_size) if scoped.get(f"settings/{r}").decode() != settings]
    if others:
        raise UserError(
            f"ranks {others} were started with other settings than rank {launch.rank}: start every rank with the same "
            "--config and key=value arguments"
        )
    return scoped


def reach_store(launch: LaunchEnvironment, *, timeout_s: float, silence_s: float = 60.0, run: str) -> Store:
    """The store of :func:`connect_store` for a process of a rank that has joined already, and is not rank 0."""
    assert launch.rank
    wait = _Wait(time.monotonic() + timeout_s, timeout_s, lambda: False)
    return _scoped(_open_store(launch, wait, silence_s), run, launch)


def _scoped(store: Store, run: str, launch: LaunchEnvironment) -> Store:
    return dist.PrefixStore(f"distill/{run}/{launch.attempt}", store)


@dataclass(frozen=True)
class _Wait:
    """A deadline, and whether to go on waiting for it."""

    deadline: float
    timeout_s: float
    stopped: Callable[[], bool]

    def is_over(self) -> bool:
        """Whether the deadline has passed. Raises Interrupted where a stop was asked for."""
        if self.stopped():
            raise Interrupted("stopped by a signal before the run began; the same command starts it")
        return time.monotonic() > self.deadline


def _open_store(launch: LaunchEnvironment, wait: _Wait, silence_s: float) -> Store:
    """The bare store. In a thread, because a port that accepts and never answers holds torch's client for ever."""
    found: SimpleQueue[Store | Exception] = SimpleQueue()

    def connect() -> None:
        try:
            found.put(
                dist.TCPStore(
                    launch.master_address,
                    launch.master_port,
                    world_size=None,
                    is_master=launch.rank == 0 and not launch.agent_store,
                    timeout=timedelta(seconds=wait.timeout_s),
                    wait_for_workers=False,
                )
            )
        except (dist.DistNetworkError, dist.DistStoreError, RuntimeError) as error:
            found.put(error)

    threading.Thread(target=connect, daemon=True).start()
    result: Store | Exception = TimeoutError("nobody answers")
    while found.empty() and not wait.is_over():
        time.sleep(0.02)
    if not found.empty():
        result = found.get()
    if isinstance(result, Exception):
        raise UserError(
            f"rank {launch.rank} could not open or reach the rendezvous at "
            f"{launch.master_address}:{launch.master_port} within {wait.timeout_s:.0f} s: {result}; is the port taken "
            "by another run (deepspeed --master_port N), or the address not reachable from this host?"
        ) from result
    limit_silence(launch.master_port, silence_s)
    return result


def _await_all(store: Store, launch: LaunchEnvironment, wait: _Wait) -> None:
    missing = list(range(launch.world_size))
    while missing:
        try:
            missing = [rank for rank in missing if not store.check([f"joined/{rank}"])]
        except dist.DistError as error:
            raise UserError(
                f"rank 0, which keeps the rendezvous, left while rank {launch.rank} waited for ranks {missing} of "
                f"{launch.world_size} to join; see its log"
            ) from error
        if missing and wait.is_over():
            raise UserError(
                f"rank {launch.rank} waited {wait.timeout_s:.0f} s for ranks {missing} of {launch.world_size} to join; "
                "see their logs, or raise cluster.rendezvous_s"
            )
        if missing:
            time.sleep(0.05)


def report_failure(store: Store, launch: LaunchEnvironment, error: UserError) -> None:
    """Let the others know that this rank will not be ready; the first rank to fail speaks for all.

    Rank 0, in which the store lives, stays until the others have heard it, at most LINGER_S.
    """
    try:
        error.said = store.add("failures", 1) > 1
        store.set("failure", f"rank {launch.rank}: {error}")
        heard = store.add("heard", 1)
        deadline = time.monotonic() + LINGER_S
        while launch.rank == 0 and heard < launch.world_size and time.monotonic() < deadline:
            time.sleep(0.05)
            heard = store.add("heard", 0)
    except dist.DistError:
        error.said = True  # the store lived in rank 0, which failed before, and said why, and left


def await_ready(store: Store, launch: LaunchEnvironment, *, timeout_s: float) -> None:
    """Return once every rank got here. Raises UserError when one failed before, so that nobody waits for it."""
    deadline = time.monotonic() + timeout_s
    try:
        store.add("ready", 1)
        while (ready := store.add("ready", 0)) < launch.world_size:
            if store.add("failures", 0) > 0:
                reason = store.get("failure").decode()
                store.add("heard", 1)
                raise _said(reason)
            if time.monotonic() > deadline:
                raise UserError(
                    f"rank {launch.rank} waited {timeout_s:.0f} s for {launch.world_size} ranks to load their models "
                    f"and data; {ready} did. See their logs, or raise cluster.collective_s"
                )
            time.sleep(0.05)
    except dist.DistError as error:
        # The store lives in rank 0: it failed, and said why, and left.
        raise _said(f"rank 0 left: {error}") from error


def _said(reason: str) -> UserError:
    return shared_error(f"another rank failed: {reason}", said=True)


def free_port(address: str) -> int:
    """A port that nothing listens on at ``address`` (this host) right now."""
    family = socket.getaddrinfo(address, 0, type=socket.SOCK_STREAM)[0][0]
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.bind((address, 0))
        return int(probe.getsockname()[1])


# How often those who may have missed a goodbye look whether the run is over.
OVER_EVERY_S = 2.0


def announce_over(store: Store, *, linger: bool, early: bool = False, listeners: int = 0) -> None:
    """The run has ended, or stopped ``early``; by student 0, where the store lives.

    ``linger``: somebody was not there to hear it. ``listeners`` of :func:`hear_over` are waited for as long, at most.
    """
    deadline = time.monotonic() + OVER_EVERY_S + 1.0
    with contextlib.suppress(dist.DistError):
        store.set("over", "early" if early else "")
        while time.monotonic() < deadline and (linger or store.add("over/heard", 0) < listeners):
            time.sleep(0.02)


def hear_over(store: Store) -> bool | None:
    """Whether the run has ended well; None: it has not ended. Raises Interrupted where student 0 is gone."""
    try:
        if not store.check(["over"]):
            return None
        store.add("over/heard", 1)
        return not store.get("over")
    except dist.DistError as error:
        raise Interrupted("student 0 is gone") from error


def listen_no_more(store: Store) -> None:
    """Who should :func:`hear_over` leaves before it: nobody waits for that."""
    with contextlib.suppress(dist.DistError):
        store.add("over/heard", 1)


def has_failed(store: Store) -> bool:
    """Whether a rank has reported that it will not be ready; ``await_ready`` says which."""
    try:
        return store.add("failures", 0) > 0
    except dist.DistError:
        return True  # rank 0, in which the store lived, among them


def is_over(store: Store) -> bool | None:
    """Whether the run's end was announced; None: student 0 is gone, with the store, before it could do that."""
    try:
        return bool(store.check(["over"]))
    except dist.DistError:
        return None

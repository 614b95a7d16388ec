"""The store through which all launched processes find each other: one port, the launcher's."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from queue import SimpleQueue

import torch.distributed as dist
from torch.distributed import Store as Store

from distill_dist.comm.environment import LaunchEnvironment
from distill_dist.comm.members import join
from distill_dist.comm.silence import limit_silence
from distill_dist.comm.stop_word import await_hearing, leave_early, not_begun, tell_stop, told_to_stop
from distill_dist.errors import Interrupted, UserError, shared_error

# Longest that a failed rank 0 keeps the store open for the others; they may still be loading their models.
LINGER_S = 30.0
# How long a rank that was told to stop still tries to reach the others, which would wait for it.
STOP_S = 20.0

Stopped = Callable[[], str | None]
"""Why this rank was told to stop; None: it was not."""


def never() -> None:
    """A :data:`Stopped` that nobody stops."""
    return


def connect_store(
    launch: LaunchEnvironment,
    *,
    timeout_s: float,
    silence_s: float = 60.0,
    run: str = "",
    settings: str = "",
    mark: str = "",
    stopped: Stopped = never,
) -> Store:
    """The store at the launcher's address once every rank has joined. Raises UserError naming the missing ranks.

    ``run`` names the run: where its port is another run's, whose rank 0 answers there, it must not disturb that.
    ``settings`` must be the same on all ranks, which learn rank 0's ``mark``. A question to the store fails after
    ``silence_s`` without an answer. Raises Interrupted, on all of them, once ``stopped`` says so on one.
    """
    wait = _Wait(timeout_s, stopped)
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
        await_hearing(scoped, launch, "disagree", limit_s=LINGER_S)
        raise UserError(
            f"ranks {others} were started with other settings than rank {launch.rank}: start every rank with the same "
            "--config and key=value arguments"
        )
    return scoped


def reach_store(launch: LaunchEnvironment, *, timeout_s: float, silence_s: float = 60.0, run: str) -> Store:
    """The store of :func:`connect_store` for a process of a rank that has joined already, and is not rank 0."""
    assert launch.rank
    wait = _Wait(timeout_s, never)
    return _scoped(_open_store(launch, wait, silence_s), run, launch)


def _scoped(store: Store, run: str, launch: LaunchEnvironment) -> Store:
    return dist.PrefixStore(f"distill/{run}/{launch.attempt}", store)


class _Wait:
    """A deadline, which comes sooner once this rank was told to stop."""

    def __init__(self, timeout_s: float, stopped: Stopped) -> None:
        self.timeout_s, self.stopped = timeout_s, stopped
        self._deadline, self._is_cut = time.monotonic() + timeout_s, False

    def is_over(self) -> bool:
        """Whether the deadline has passed. Raises Interrupted where that is for a stop."""
        why, now = self.stopped(), time.monotonic()
        if why is not None and not self._is_cut:
            self._is_cut, self._deadline = True, min(self._deadline, now + STOP_S)
        if now <= self._deadline:
            return False
        if why is not None:
            raise not_begun(why)
        return True


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
        if (why := wait.stopped()) is not None:
            tell_stop(store, launch.rank, why)
        if (why := told_to_stop(store)) is not None:
            leave_early(store, launch, why)
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
        await_hearing(store, launch, "heard", limit_s=LINGER_S)
    except dist.DistError:
        error.said = True  # the store lived in rank 0, which failed before, and said why, and left


def await_ready(
    store: Store, launch: LaunchEnvironment, *, timeout_s: float, stopped: Stopped = never, device: str = ""
) -> None:
    """Return once every rank got here. Raises UserError when one failed before, so that nobody waits for it.

    Raises Interrupted on all ranks where ``stopped`` says so on one before they start: rank 0 decides. ``device``
    (`cpu`, `cuda`) is the same on those that name one, or a collective of theirs would not end: UserError.
    """
    deadline = time.monotonic() + timeout_s
    try:
        store.set(f"device/{launch.rank}", device)
        store.add("ready", 1)
        while not store.check(["start"]):
            if (why := stopped()) is not None:
                tell_stop(store, launch.rank, why)
            if store.add("failures", 0) > 0:
                reason = store.get("failure").decode()
                store.add("heard", 1)
                raise _said(reason)
            ready = store.add("ready", 0)
            if launch.rank == 0 and _decide(store, launch, all_ready=ready == launch.world_size):
                break
            if time.monotonic() > deadline:
                raise UserError(
                    f"rank {launch.rank} waited {timeout_s:.0f} s for {launch.world_size} ranks to load their models "
                    f"and data; {ready} did. See their logs, or raise cluster.collective_s"
                )
            time.sleep(0.05)
        why = store.get("start").decode()
    except dist.DistError as error:
        if (why := stopped()) is not None:
            raise not_begun(why) from error
        # The store lives in rank 0: it failed, and said why, and left.
        raise _said(f"rank 0 left: {error}") from error
    if why:
        leave_early(store, launch, why)


def _decide(store: Store, launch: LaunchEnvironment, *, all_ready: bool) -> bool:
    """Whether rank 0 has said what is to be, start or stop. Raises UserError for students that do not go together."""
    why = told_to_stop(store)
    if why is None and not all_ready:
        return False
    if why is None and (problem := _different_devices(store, launch)) is not None:
        error = UserError(problem)
        report_failure(store, launch, error)
        raise error
    store.set("start", why or "")
    return True


def _different_devices(store: Store, launch: LaunchEnvironment) -> str | None:
    devices: dict[str, list[int]] = {}
    for rank in range(launch.world_size):
        devices.setdefault(store.get(f"device/{rank}").decode(), []).append(rank)
    devices.pop("", None)
    if len(devices) < 2:
        return None
    found = ", ".join(f"ranks {members} on {name}" for name, members in sorted(devices.items()))
    return (
        f"students have different devices: {found}; take nodes that all have GPUs, or set cluster.device=cpu"
    )


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
    """Whether a rank has reported that it will not be ready, or was told to stop; ``await_ready`` says which."""
    try:
        return store.add("failures", 0) > 0 or told_to_stop(store) is not None
    except dist.DistError:
        return True  # rank 0, in which the store lived, among them


def is_over(store: Store) -> bool | None:
    """Whether the run's end was announced; None: student 0 is gone, with the store, before it could do that."""
    try:
        return bool(store.check(["over"]))
    except dist.DistError:
        return None

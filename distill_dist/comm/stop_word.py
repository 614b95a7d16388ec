"""How a rank that was told to stop lets the others know, by way of the run's store: a signal may reach it alone."""

from __future__ import annotations

import contextlib
import time
from typing import NoReturn

import torch.distributed as dist

from distill_dist.comm.environment import LaunchEnvironment
from distill_dist.errors import Interrupted

_KEY, _HEARD = "stop", "stop/heard"
# Longest that rank 0 waits for the others to hear it; launchers kill after 30 s.
LINGER_S = 20.0


def tell_stop(store: dist.Store, rank: int, why: str) -> None:
    """The run is to stop, says ``rank``: ``why`` (`by a signal`). Who comes first is heard."""
    with contextlib.suppress(dist.DistError):
        store.compare_set(_KEY, "", f"{why} (rank {rank})")


def told_to_stop(store: dist.Store) -> str | None:
    """Why the run is to stop; None: nobody said so."""
    try:
        return store.get(_KEY).decode() if store.check([_KEY]) else None
    except dist.DistError:
        return None  # student 0 is gone: who needs it finds that out


def leave_early(store: dist.Store, launch: LaunchEnvironment, why: str) -> NoReturn:
    """End the run before it began, on this rank. Raises Interrupted; rank 0 waits for the others to hear it."""
    with contextlib.suppress(dist.DistError):
        await_hearing(store, launch, _HEARD, limit_s=LINGER_S)
    raise not_begun(why)


def await_hearing(store: dist.Store, launch: LaunchEnvironment, key: str, *, limit_s: float) -> None:
    """This rank has heard what ``key`` is about; rank 0, in which the store lives, waits until all have, at most."""
    heard = store.add(key, 1)
    deadline = time.monotonic() + limit_s
    while launch.rank == 0 and heard < launch.world_size and time.monotonic() < deadline:
        time.sleep(0.05)
        heard = store.add(key, 0)


def not_begun(why: str) -> Interrupted:
    """What a run ends with that was told to stop before it began."""
    return Interrupted(f"stopped {why} before the run began; the same command starts it")

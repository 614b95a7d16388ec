"""A launched process that holds a share of a sharded teacher and leads no replica: it supervises its worker.

It has no host: students ask the leader's. Its worker ends and starts with every attempt that the leader's host makes.
"""

from __future__ import annotations

import contextlib
import logging
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch

from distill_dist.assemble.place import Place
from distill_dist.assemble.shard_job import ShardJob
from distill_dist.assemble.teacher_rank import OVER_GRACE_S, asked_to_stop, save_config
from distill_dist.children import start_child
from distill_dist.comm.attempts import WATCH_S, Attempts, Broken, StoreGone
from distill_dist.comm.rendezvous import has_failed, hear_over, listen_no_more
from distill_dist.config.pool import as_only_teacher, model_served_by
from distill_dist.config.schema import RunConfig
from distill_dist.errors import Interrupted, UserError
from distill_dist.run_folder import RunFolder
from distill_dist.stop_signal import StopSignal

_log = logging.getLogger(__name__)


def follow_leader(config: RunConfig, place: Place, stop: StopSignal, folder: RunFolder) -> None:
    """Keep this rank's worker until the run is over. Raises UserError, and Interrupted when it leaves before that."""
    leader, member = place.roles.share(place.rank)
    attempts = Attempts(place.store, leader=leader)
    number = model_served_by(place.roles.leaders.index(leader), len(config.teachers))
    path = save_config(as_only_teacher(config, number), place, folder)
    follower = Follower(attempts, _starter(path, place, leader, member))
    _log.info("member %d of the replica that teacher %d leads", member, leader)
    done: bool | None = None
    try:
        loading = place.loading(timeout_s=config.cluster.collective_s, stopped=stop.why)
        with loading, contextlib.suppress(StoreGone):
            # what has become of student 0, and the store, the block's end says
            _await_first(follower, place, config.cluster.collective_s)
        should_stop = asked_to_stop(stop, place)
        while (done := _over(place, attempts)) is None:
            if should_stop():
                raise Interrupted(f"teacher {place.rank} left, when it was stopped")
            follower.tend()
            time.sleep(WATCH_S)
    except StoreGone as error:
        raise Interrupted(f"teacher {place.rank} left: {error}") from error
    finally:
        follower.leave(None if done else f"teacher {place.rank}, a member of the replica, has left")
    if not done:
        raise Interrupted(f"teacher {place.rank} left, when its students or its leader stopped early")


def _over(place: Place, attempts: Attempts) -> bool | None:
    """Whether the run ended well; None: it goes on."""
    done = hear_over(place.store)
    if done is None and (done := attempts.left()) is not None:
        listen_no_more(place.store)
    return done


def _starter(
    config: Path, place: Place, leader: int, member: int
) -> Callable[[int], subprocess.Popen[bytes]]:
    def start(attempt: int) -> subprocess.Popen[bytes]:
        job = ShardJob(
            config=str(config),
            launch=asdict(place.launch),
            run=place.run,
            leader=leader,
            member=member,
            attempt=attempt,
            threads=torch.get_num_threads(),
            connection=None,
        )
        return start_child(
            "distill_dist.assemble.shard_worker",
            asdict(job),
            stdin=subprocess.DEVNULL,
            stdout=sys.stderr,
        )

    return start


class Follower:
    """This member's worker, of the newest attempt."""

    def __init__(self, attempts: Attempts, start: Callable[[int], subprocess.Popen[bytes]]) -> None:
        """``start`` starts it for an attempt, by its number."""
        self._attempts, self._start = attempts, start
        self._process: subprocess.Popen[bytes] | None = None
        self.number = 0

    @property
    def pid(self) -> int | None:
        """Of the running worker."""
        return None if self._process is None else self._process.pid

    def tend(self) -> None:
        """Let it follow what became of the attempts since the last look. Raises StoreGone."""
        newest = self._attempts.newest()
        if newest > self.number:
            self._kill()
            _log.info("attempt %d: starting the worker", newest)
            self.number, self._process = newest, self._start(newest)
        elif self._process is None:
            return
        elif self._attempts.broken(self.number) is not None:
            self._kill()  # and its device is free until the next one
        elif (code := self._process.poll()) is not None:
            self._process = None
            if code != 0:  # 0: the leader let it go
                self._break(f"a worker of the replica ended with {code}")

    def broken(self) -> Broken | None:
        """Why the attempt ended, if it did. Raises StoreGone."""
        return self._attempts.broken(self.number) if self.number else None

    def is_met(self, size: int) -> bool:
        """Whether all members of the attempt have loaded the teacher. Raises StoreGone."""
        return self._attempts.have_loaded(self.number, size=size)

    def leave(self, reason: str | None) -> None:
        """End it; with a ``reason`` for all members, without one its leader has let it go, or will."""
        if self._process is not None and reason is not None:
            with contextlib.suppress(StoreGone):
                self._break(reason)
        elif self._process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(OVER_GRACE_S)
        self._kill()

    def _break(self, reason: str) -> None:
        _log.warning("attempt %d: %s", self.number, reason)
        self._attempts.break_(self.number, Broken("lost", reason))

    def _kill(self) -> None:
        if self._process is not None:
            self._process.kill()  # a stopped one, or one that waits inside torch, reads nothing
            self._process.wait()
            self._process = None


def _await_first(follower: Follower, place: Place, timeout_s: float) -> None:
    """Return when the first attempt is there, or when somebody failed: the run then ends for all. Raises UserError."""
    deadline = time.monotonic() + timeout_s
    while not follower.is_met(place.roles.shards) and not has_failed(place.store):
        follower.tend()
        broken = follower.broken()
        if broken is not None and broken.kind == "refused":
            raise UserError(broken.reason)
        if time.monotonic() > deadline:
            raise UserError(
                f"the replica's members did not load their teacher within {timeout_s:.0f} s; raise cluster.collective_s"
            )
        time.sleep(WATCH_S)

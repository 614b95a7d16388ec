"""A launched process that teaches: it supervises its host, and starts another one when that dies or hangs.

It holds no device and is in no RPC world: launchers kill the siblings of a launched process that dies, so this one must
not die with what can.
"""

from __future__ import annotations

import contextlib
import json
import logging
import queue
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

import torch

from distill_dist.assemble.place import Place
from distill_dist.assemble.signal_cache_of_run import check_cache_dir
from distill_dist.assemble.teacher_host import HostJob
from distill_dist.children import start_child
from distill_dist.comm.attempts import Attempts, StoreGone
from distill_dist.comm.rendezvous import OVER_EVERY_S, Store, has_failed, is_over
from distill_dist.comm.stood_down import stand_down
from distill_dist.comm.stop_word import tell_stop
from distill_dist.config.load import dump_config
from distill_dist.config.pool import as_only_teacher, model_served_by, naming_the_model
from distill_dist.config.schema import RunConfig
from distill_dist.durable import write_durable
from distill_dist.errors import Interrupted, UserError
from distill_dist.run_folder import RunFolder
from distill_dist.stop_signal import StopSignal

# Launchers signal every rank at once; the students still need a while to save, and ask no more after it.
STOP_GRACE_S = 20.0
# How long a host may take to leave when the run is over: it ends its worker, and says what it did, on a busy machine.
OVER_GRACE_S = 15.0
# Hosts in a row that end before they are ready: the next one would too, and this teacher stands by.
MOST_FAILED = 3
_log = logging.getLogger(__name__)


class _Host:
    """One host process and what it says."""

    def __init__(self, job: HostJob) -> None:
        self.process = start_child(
            "distill_dist.assemble.teacher_host",
            asdict(job),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self._lines: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self.started = self.heard = time.monotonic()
        self.is_ready = False
        assert self.process.stdout is not None
        self._reader = threading.Thread(target=self._read, args=(self.process.stdout,), daemon=True)
        self._reader.start()

    def _read(self, lines: IO[bytes]) -> None:
        for line in lines:
            # here, and not where the line is used: the store may keep that waiting
            self.heard = time.monotonic()
            self._lines.put(json.loads(line))

    def next_line(self, timeout_s: float) -> dict[str, Any] | None:
        """What it says within ``timeout_s``; None: nothing yet."""
        try:
            line = self._lines.get(timeout=timeout_s)
        except queue.Empty:
            return None
        self.is_ready = self.is_ready or "ready" in line
        return line

    @property
    def has_ended(self) -> bool:
        """It ended, and all that it said was read."""
        return self.process.poll() is not None and not self._reader.is_alive() and self._lines.empty()

    def ask_to_end(self) -> None:
        """It leaves in good order."""
        assert self.process.stdin is not None
        if not self.process.stdin.closed:
            self.process.stdin.close()

    def kill(self) -> None:
        """Its worker ends with it."""
        self.process.kill()
        self.process.wait()


def serve_teacher(config: RunConfig, place: Place, stop: StopSignal, folder: RunFolder) -> None:
    """Keep a host until the students let it go. Raises UserError, and Interrupted when it leaves before that."""
    number = model_served_by(place.roles.leaders.index(place.rank), len(config.teachers))
    loading = place.loading(timeout_s=config.cluster.collective_s, stopped=stop.why)
    with loading, naming_the_model(config, number):
        check_cache_dir(config.teacher)
        start = _starter(as_only_teacher(config, number), place, folder)
        host = start(False)
        _await_ready(host, config.cluster.collective_s, given_up=lambda: has_failed(place.store))
    done = False
    try:
        _supervise(
            host,
            start,
            place,
            silence_s=config.teacher.deadline_s,
            start_s=config.cluster.collective_s,
            should_stop=asked_to_stop(stop, place),
        )
        done = True
    finally:
        with contextlib.suppress(StoreGone):  # those who follow it need not wait for another attempt
            Attempts(place.store, leader=place.rank).leave(done=done)


def asked_to_stop(stop: StopSignal, place: Place) -> Callable[[], bool]:
    """Whether a teacher that has loaded its model now is to leave; the students hear at once that they are to stop."""
    began, is_told = time.monotonic(), False

    def should_stop() -> bool:
        nonlocal is_told
        if not is_told and (why := stop.why()) is not None:
            is_told = True
            tell_stop(place.store, place.rank, why)
        # A signal that came while models were loading does not shorten what the students need.
        return stop.asked_for(STOP_GRACE_S) and time.monotonic() - began >= STOP_GRACE_S

    return should_stop


def save_config(config: RunConfig, place: Place, folder: RunFolder) -> Path:
    """Where this rank's processes read ``config``."""
    path = folder.path / "teachers" / f"rank-{place.rank:05d}.yaml"
    path.parent.mkdir(exist_ok=True)
    text = dump_config(config)
    write_durable(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
    return path


def _starter(config: RunConfig, place: Place, folder: RunFolder) -> Callable[[bool], _Host]:
    path = save_config(config, place, folder)

    def start(replaces: bool) -> _Host:
        return _Host(
            HostJob(
                config=str(path),
                launch=asdict(place.launch),
                run=place.run,
                name=place.rpc_names[place.rank],
                students=list(place.student_names),
                hosts=list(place.teacher_names),
                threads=torch.get_num_threads(),
                replaces=replaces,
            )
        )

    return start


def _await_ready(host: _Host, timeout_s: float, *, given_up: Callable[[], bool]) -> None:
    """Return when the teacher is loaded, or once the run is ``given_up``. Raises UserError where it cannot be."""
    deadline = time.monotonic() + timeout_s
    while not host.is_ready and not given_up():
        line = host.next_line(0.2)
        if line is not None and "refused" in line:
            raise UserError(line["refused"])
        if host.has_ended:
            raise UserError(f"the teacher's host ended with {host.process.returncode}: see its log")
        if time.monotonic() > deadline:
            host.kill()
            raise UserError(
                f"the teacher was not loaded within {timeout_s:.0f} s; raise cluster.collective_s"
            )


def _supervise(
    host: _Host,
    start: Callable[[bool], _Host],
    place: Place,
    *,
    silence_s: float,
    start_s: float,
    should_stop: Callable[[], bool],
) -> None:
    failed, watch = 0, _Watch(place.store)
    while True:
        line = host.next_line(0.2)
        if line is not None and "left" in line:
            return _end(host, place, line["left"])
        if line is not None and "drifted" in line:
            return _stand_by(
                host, place, watch, f"it has drifted: {line['drifted']}", should_stop=should_stop
            )
        if should_stop():
            host.ask_to_end()
        if watch.has_ended():
            return _end_late(host, place, watch)
        reason = _fault(host, line, silence_s=silence_s, start_s=start_s)
        if reason is None:
            continue
        host.kill()
        if watch.has_ended(now=True):
            return _end_late(host, place, watch)
        failed = 0 if host.is_ready else failed + 1
        if failed >= MOST_FAILED:
            reason = f"{failed} hosts in a row did not start: {reason}"
            return _stand_by(host, place, watch, reason, should_stop=should_stop)
        _log.warning("its host %s; starting another", reason)
        host = start(True)


def _stand_by(
    host: _Host, place: Place, watch: _Watch, reason: str, *, should_stop: Callable[[], bool]
) -> None:
    """Teach no more, but stay until the run is over: launchers kill the siblings of a process that leaves."""
    name = place.rpc_names[place.rank]
    _log.error("%s teaches no more: %s; the others go on", name, reason)
    host.kill()
    stand_down(place.store, name, reason)
    while not watch.has_ended():
        if should_stop():
            raise Interrupted(f"teacher {place.rank} left: {reason}")
        time.sleep(0.2)
    if watch.over is None:
        raise Interrupted(_orphaned(place))


def _end_late(host: _Host, place: Place, watch: _Watch) -> None:
    """The run is over; a host that stands has heard so, or hears it now."""
    if watch.over is None:
        host.ask_to_end()
    deadline = time.monotonic() + OVER_GRACE_S
    while not host.has_ended and time.monotonic() < deadline:
        line = host.next_line(0.2)
        if line is not None and "left" in line:
            return _end(host, place, line["left"])
    host.kill()
    if watch.over is None:
        raise Interrupted(_orphaned(place))
    return None


def _orphaned(place: Place) -> str:
    where = place.launch.master_address
    return f"teacher {place.rank} left: student 0, which keeps the store at {where}, is gone or cut off"


class _Watch:
    """Whether the run is over: students that ended while this teacher's host was down cannot let it go."""

    def __init__(self, store: Store) -> None:
        self._store, self._asked_at = store, time.monotonic()
        self.over: bool | None = False

    def has_ended(self, now: bool = False) -> bool:
        """Asks the store from time to time, or ``now``."""
        if now or time.monotonic() - self._asked_at > OVER_EVERY_S:
            self._asked_at = time.monotonic()
            self.over = is_over(self._store)
        return self.over is not False


def _fault(host: _Host, line: dict[str, Any] | None, *, silence_s: float, start_s: float) -> str | None:
    """Why the host has to be replaced; None: it need not."""
    if line is not None and "refused" in line:
        return str(line["refused"])
    if host.has_ended:
        return f"ended with {host.process.returncode}"
    # while it loads it says nothing
    if not host.is_ready and time.monotonic() - host.started > start_s:
        return f"did not load its teacher within {start_s:.0f} s"
    if host.is_ready and time.monotonic() - host.heard > silence_s:
        return f"was silent for {silence_s:.0f} s"
    return None


def _end(host: _Host, place: Place, left: dict[str, Any]) -> None:
    with contextlib.suppress(subprocess.TimeoutExpired):
        host.process.wait(OVER_GRACE_S)
    host.kill()
    counts = {name: count for name, count in left.items() if count and not isinstance(count, bool)}
    told = ", ".join(f"{name.replace('_', ' ')} {count}" for name, count in counts.items())
    _log.info("taught: %s", told or "nothing was asked")
    if not left["done"]:
        when = "when its students stopped early" if left["dismissed"] else "before its students did"
        raise Interrupted(f"teacher {place.rank} left after {left['answered']} answers, {when}")

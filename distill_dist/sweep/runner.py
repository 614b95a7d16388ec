"""Run the trials on this host: some at a time, each until it is done, failed, or stopped too often."""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from distill_dist.errors import EXIT_RESUMABLE, Interrupted, UserError
from distill_dist.run_folder import RunFolder
from distill_dist.sweep.plan import Trial
from distill_dist.sweep.trial_process import ask_to_stop, kill_trial, launch_log, ranks_of, start_trial
from distill_dist.sweep.verdict import Verdict, is_under_way, read_verdict

POLL_S = 0.2
# What another sweep left running is looked for among all processes, which takes 0.1 s.
ADOPTED_EVERY_S = 2.0
# Slurm's scripts are warned 120 s before the end.
STOP_WITHIN_S = 110.0
# Trials in a row that may fail while none has come to its end: the next one would too.
MOST_FAILED = 3


@dataclass
class _Running:
    """A trial on its way. ``process`` None: another sweep started it, which has ended. ``told``: to stop."""

    trial: Trial
    slot: int
    process: subprocess.Popen[bytes] | None
    before: Verdict
    looked_at: float = field(default_factory=time.monotonic)
    told: bool = False

    def has_ended(self) -> bool:
        """No process of it is left on this host, and on no other one that holds its folder."""
        if self.process is not None and self.process.poll() is None:
            return False
        if is_under_way(self.trial.folder):
            return False
        if self.process is None:
            if time.monotonic() - self.looked_at < ADOPTED_EVERY_S:
                return False
            self.looked_at = time.monotonic()
            return not ranks_of(self.trial)
        return True


Follow = Callable[[Trial, Verdict], Sequence[Trial]]
"""Trials that may start now that one is done or has failed. Raises UserError where nothing more can."""


def _nothing(trial: Trial, verdict: Verdict) -> Sequence[Trial]:
    return ()


class Runner:
    """``command(trial, slot)`` starts a trial. Of those that ask the same of a teacher one goes first, and pays."""

    def __init__(
        self,
        trials: Sequence[Trial],
        command: Callable[[Trial, int], list[str]],
        *,
        parallel: int,
        restarts: int,
        retry_failed: bool,
        should_stop: Callable[[], bool],
        say: Callable[[str], None],
        follow: Follow = _nothing,
        total: int | None = None,
        stop_within_s: float = STOP_WITHIN_S,
    ) -> None:
        """``restarts``: how often a trial that stopped unasked is started again, in this call.

        ``follow`` is asked once for each trial that is done or has failed, also before this call; ``total``: of all
        trials, where it gives more. Of those that wait the one with the lowest number starts first.
        """
        self._command, self._parallel, self._restarts = command, parallel, restarts
        self._should_stop, self._say, self._stop_within_s = should_stop, say, stop_within_s
        self._ended = ("done",) if retry_failed else ("done", "failed")
        self._follow, self._total = follow, len(trials) if total is None else total
        self._waiting: list[Trial] = []
        self._paid: set[int | None] = set()
        self._done, self._failed, self._open = 0, 0, 0
        self._starts: dict[int, int] = {}
        self._stopped: list[str] = []
        self._gave_up = ""  # why nothing more is started
        self._running: list[_Running] = []
        self._add(trials)

    def run(self) -> None:
        """Return when every trial has ended. Raises Interrupted where some can go on, and UserError.

        However it ends, no process that it started is left.
        """
        try:
            while (self._waiting or self._running) and not self._should_stop():
                while (trial := self._next()) is not None:
                    self._start(trial)
                self._reap()
                time.sleep(POLL_S)
            if self._running:
                self._end_all()
        finally:
            for one in self._running:
                if one.process is not None:
                    kill_trial(one.trial, one.process)
        if self._should_stop() and self._open:
            raise Interrupted("asked to; the same command goes on")
        if self._gave_up:
            raise UserError(self._gave_up)
        if self._stopped:
            raise Interrupted(f"{', '.join(self._stopped)} stopped too often; the same command goes on")

    def _add(self, trials: Sequence[Trial]) -> None:
        """Let them wait, and those that follow on what has ended among them."""
        ended = []
        for trial in trials:
            verdict = read_verdict(trial.folder)
            if verdict.state not in self._ended:
                self._waiting.append(trial)
                self._open += 1
                continue
            ended.append((trial, verdict))
            if verdict.state == "done":
                self._done += 1
                self._paid.add(trial.group)
        self._waiting.sort(key=lambda trial: trial.number)
        for trial, verdict in ended:
            self._go_on(trial, verdict)

    def _go_on(self, trial: Trial, verdict: Verdict) -> None:
        if self._gave_up:
            return
        try:
            self._add(self._follow(trial, verdict))
        except UserError as error:
            self._waiting.clear()
            self._gave_up = str(error)

    def _next(self) -> Trial | None:
        """The next trial that may start now."""
        if len(self._running) >= self._parallel:
            return None
        paying = {one.trial.group for one in self._running} - self._paid - {None}
        for trial in self._waiting:
            if trial.group not in paying:
                self._waiting.remove(trial)
                return trial
        return None

    def _start(self, trial: Trial) -> None:
        slot = min(set(range(self._parallel)) - {one.slot for one in self._running})
        before = read_verdict(trial.folder)
        if before.state == "running" or ranks_of(trial):
            self._say(f"{trial.name}: runs already, and is waited for")
            self._running.append(_Running(trial, slot, None, before))
            return
        self._starts[trial.number] = self._starts.get(trial.number, 0) + 1
        process = start_trial(self._command(trial, slot), trial)
        self._running.append(_Running(trial, slot, process, before))
        again = " again" if before.state != "waiting" else ""
        self._say(f"{trial.name}: started{again}; it prints to {launch_log(trial)}")

    def _reap(self, *, restart: bool = True) -> None:
        for one in [one for one in self._running if one.has_ended()]:
            self._running.remove(one)
            self._judge(one.trial, _outcome(one), restart=restart)

    def _judge(self, trial: Trial, verdict: Verdict, *, restart: bool) -> None:
        self._open -= verdict.state in ("done", "failed")
        if verdict.state == "done":
            self._done += 1
            self._paid.add(trial.group)
            self._say(f"{trial.name}: done ({self._done} of {self._total})")
            self._go_on(trial, verdict)
        elif verdict.state == "failed":
            self._failed += 1
            self._say(f"{trial.name}: failed: {verdict.reason}")
            if not self._done and self._failed >= MOST_FAILED and self._waiting:
                self._waiting.clear()
                self._gave_up = (
                    f"{self._failed} trials failed and none is done, so no more are started. One of them, "
                    f"{trial.name}: {verdict.reason}"
                )
            self._go_on(trial, verdict)
        else:
            self._say(f"{trial.name}: stopped: {verdict.reason}")
            if restart and self._starts.get(trial.number, 0) <= self._restarts:
                self._waiting.insert(0, trial)
            elif restart:
                self._stopped.append(trial.name)

    def _end_all(self) -> None:
        """Let those on their way save; what does not end in time is killed by ``run``."""
        self._say(f"stopping {', '.join(one.trial.name for one in self._running)}")
        deadline = time.monotonic() + self._stop_within_s
        while self._running and time.monotonic() < deadline:
            for one in self._running:
                one.told = True
                ask_to_stop(
                    one.trial, one.process
                )  # each time: ranks that had not begun to listen may by now
            until = min(deadline, time.monotonic() + 1)
            while self._running and time.monotonic() < until:
                self._reap(restart=False)
                time.sleep(POLL_S)
        for one in self._running:
            self._say(f"{one.trial.name}: did not stop within {self._stop_within_s:.0f} s")


def _outcome(one: _Running) -> Verdict:
    """What became of it, and said so in its folder where it had no time to."""
    verdict = read_verdict(one.trial.folder)
    code = None if one.process is None else one.process.returncode
    if verdict.state == "done" or verdict.time != one.before.time or code in (None, EXIT_RESUMABLE):
        return verdict
    if one.told or code < 0:  # by a signal, ours or another's, before train.py could listen to it
        return Verdict("stopped", f"it ended with code {code} before it began", time=verdict.time)
    log = launch_log(one.trial)
    reason = f"it ended with code {code} before it began: {_last_words(one.trial)} ({log})"
    with contextlib.suppress(OSError):
        RunFolder(one.trial.folder).refuse(UserError(reason))
    return Verdict("failed", reason)


def _last_words(trial: Trial) -> str:
    """The last message of ours in what it printed, else its last line."""
    try:
        lines = launch_log(trial).read_text(encoding="utf-8", errors="replace").splitlines()[-200:]
    except OSError:
        return ""
    ours = [line for line in lines if "error: " in line]
    return (ours or [line for line in lines if line.strip()] or [""])[-1].strip()

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from distill_dist.stop_signal import StopSignal

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


@pytest.fixture
def stop() -> Iterator[StopSignal]:
    before = [signal.getsignal(number) for number in SIGNALS]
    yield StopSignal()
    for number, handler in zip(SIGNALS, before, strict=True):
        signal.signal(number, handler)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_is_remembered_and_does_nothing_else(stop: StopSignal, number: signal.Signals) -> None:
    assert not stop.asked()
    assert not stop.asked_for(0.0)
    os.kill(os.getpid(), number)
    assert stop.asked()
    assert stop.asked_for(0.0)


def test_a_signal_that_came_before_the_handlers_waits_for_them() -> None:
    code = """
import os, signal
signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGUSR1))  # as slurm/*.sh start a rank
os.kill(os.getpid(), signal.SIGUSR1)
from distill_dist.stop_signal import StopSignal
assert StopSignal().asked()
assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == set()
"""
    # a process of its own: where there are threads, one that blocks nothing would take the signal
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0


def test_since_the_first_signal(stop: StopSignal, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("distill_dist.stop_signal.time.monotonic", lambda: now)
    os.kill(os.getpid(), signal.SIGTERM)
    now = 115.0
    os.kill(os.getpid(), signal.SIGTERM)  # an impatient launcher does not start the clock again
    assert stop.asked_for(15.0)
    assert not stop.asked_for(15.1)


def test_it_says_so(stop: StopSignal, caplog: pytest.LogCaptureFixture) -> None:
    os.kill(os.getpid(), signal.SIGUSR1)
    os.kill(os.getpid(), signal.SIGUSR1)
    assert caplog.messages == ["got SIGUSR1: stopping at the next step"]


def test_a_second_ctrl_c_interrupts_as_usual(stop: StopSignal) -> None:
    os.kill(os.getpid(), signal.SIGINT)
    assert stop.asked()
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)


def test_it_listens_to_others_now_and_then(
    stop: StopSignal, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, said, calls = 100.0, None, 0

    def source() -> str | None:
        nonlocal calls
        calls += 1
        return said

    monkeypatch.setattr("distill_dist.stop_signal.time.monotonic", lambda: now)
    stop.listen(source)
    assert [stop.asked() for _ in range(3)] == [False] * 3
    assert (calls, stop.why()) == (1, None)
    now, said = 101.0, "before the end"
    assert stop.why() == "before the end"
    now, said = 110.0, None
    assert stop.asked_for(9.0)
    assert not stop.asked_for(9.1)
    assert caplog.messages == ["stopping before the end at the next step"]


def test_a_signal_says_so(stop: StopSignal) -> None:
    stop.listen(lambda: "before the end")
    os.kill(os.getpid(), signal.SIGTERM)
    assert stop.why() == "by a signal"

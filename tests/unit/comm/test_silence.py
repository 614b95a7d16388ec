"""A store that answers no more: its process is stopped, as if the way to it were cut."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch.distributed as dist

from distill_dist.comm.silence import clone_store, limit_silence
from distill_dist.durable import hold_lock

LIMIT_S = 1.0
SOON_S = 20.0  # on a machine with much else to do
SERVER = """
import sys, torch.distributed as dist
store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
print(store.port, flush=True)
sys.stdin.read()
"""


@pytest.fixture
def server() -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    process = subprocess.Popen([sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    yield process, int(process.stdout.readline())
    process.kill()
    process.communicate()


def test_every_connection_and_its_clones_give_up_and_only_after_the_limit(
    server: tuple[subprocess.Popen[bytes], int], capfd: pytest.CaptureFixture[str]
) -> None:
    process, port = server
    store = dist.PrefixStore("run", dist.TCPStore("127.0.0.1", port, wait_for_workers=False))
    limit_silence(port, LIMIT_S)
    clone = clone_store(store)
    asked: list[Callable[[], object]] = [lambda: store.add("n", 1), lambda: clone.check(["n"])]
    assert [ask() for ask in asked] == [1, True]
    os.kill(process.pid, signal.SIGSTOP)
    os.waitpid(process.pid, os.WUNTRACED)  # it may answer once more before it stops
    for ask in asked:
        began = time.monotonic()
        with pytest.raises(dist.DistNetworkError, match="Socket Timeout"):
            ask()
        assert LIMIT_S * 0.9 < time.monotonic() - began < SOON_S
    os.kill(process.pid, signal.SIGCONT)
    capfd.readouterr()  # torch writes where in C++ it happened


def test_a_wait_for_another_rank_is_not_cut_short(server: tuple[subprocess.Popen[bytes], int]) -> None:
    _, port = server
    store = dist.TCPStore("127.0.0.1", port, wait_for_workers=False)
    limit_silence(port, 0.2)
    other = clone_store(store)
    began = time.monotonic()
    threading.Timer(1.0, lambda: other.set("late", "1")).start()
    assert store.get("late") == b"1"
    assert time.monotonic() - began > 0.9


def test_nothing_is_left_open_and_a_lock_stays_held(
    server: tuple[subprocess.Popen[bytes], int], tmp_path: Path
) -> None:
    """A lock of this kind goes when its process closes the file anywhere."""
    _, port = server
    store = dist.TCPStore("127.0.0.1", port, wait_for_workers=False)
    assert hold_lock(tmp_path / "lock") is None
    before = set(os.listdir("/proc/self/fd"))
    limit_silence(port, LIMIT_S)
    assert set(os.listdir("/proc/self/fd")) == before
    assert store.add("n", 1) == 1
    other = "import sys, pathlib; from distill_dist.durable import hold_lock as h; print(h(pathlib.Path(sys.argv[1])))"
    done = subprocess.run(
        [sys.executable, "-c", other, str(tmp_path / "lock")], capture_output=True, text=True, timeout=60, check=True
    )  # fmt: skip
    assert f"process {os.getpid()}" in done.stdout

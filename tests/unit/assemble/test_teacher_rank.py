"""A supervisor whose hosts do not start: it stands by, because launchers kill the siblings of one that leaves."""

from __future__ import annotations

import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest
import torch.distributed as dist
from tiny import wait_until

from distill_dist.assemble import teacher_rank
from distill_dist.assemble.teacher_rank import MOST_FAILED
from distill_dist.comm.rendezvous import announce_over
from distill_dist.comm.stood_down import stood_down
from distill_dist.errors import Interrupted

LIMIT_S = 20.0


class Host:
    """One that has said ``lines`` and ended."""

    def __init__(self, *lines: dict[str, Any]) -> None:
        self._lines = list(lines)
        self.process = SimpleNamespace(returncode=0, wait=lambda timeout: 0)
        self.started = self.heard = time.monotonic()
        self.is_ready = False
        self.is_killed = False

    def next_line(self, timeout_s: float) -> dict[str, Any] | None:
        line = self._lines.pop(0) if self._lines else None
        self.is_ready = self.is_ready or (line is not None and "ready" in line)
        return line

    @property
    def has_ended(self) -> bool:
        return not self._lines

    def ask_to_end(self) -> None:
        """It has ended."""

    def kill(self) -> None:
        self.is_killed = True


class Supervisor:
    """One in a thread, of the hosts that it is given one after another."""

    def __init__(self, *hosts: Host, stops: bool = False) -> None:
        self.store = dist.HashStore()
        self.hosts = list(hosts)
        self.started: list[bool] = []
        self.ended: list[str] = []
        place: Any = SimpleNamespace(store=self.store, rank=1, rpc_names=("student0", "teacher1"))
        first: Any = self.hosts[0]

        def start(replaces: bool) -> Any:
            self.started.append(replaces)
            return self.hosts[len(self.started)]

        def run() -> None:
            try:
                teacher_rank._supervise(
                    first, start, place, silence_s=LIMIT_S, start_s=LIMIT_S, should_stop=lambda: stops
                )
                self.ended.append("well")
            except Interrupted as error:
                self.ended.append(str(error))

        self.thread = threading.Thread(target=run, daemon=True)
        self.thread.start()

    def await_down(self) -> str:
        wait_until(lambda: stood_down(self.store, ["teacher1"]), what="it to stand down", timeout_s=LIMIT_S)
        return stood_down(self.store, ["student0", "teacher1"])["teacher1"]

    def end(self) -> list[str]:
        announce_over(self.store, linger=False)
        self.thread.join(LIMIT_S)
        return self.ended


@pytest.fixture(autouse=True)
def _looks_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(teacher_rank, "OVER_EVERY_S", 0.0)


def test_one_whose_hosts_do_not_start_stands_by_until_the_run_is_over() -> None:
    refusing = [Host({"refused": "teacher.path holds no weights"}) for _ in range(MOST_FAILED)]
    supervisor = Supervisor(Host({"ready": True}), *refusing)
    reason = f"{MOST_FAILED} hosts in a row did not start: teacher.path holds no weights"
    assert supervisor.await_down() == reason
    assert supervisor.started == [True] * MOST_FAILED
    assert all(host.is_killed for host in supervisor.hosts)
    time.sleep(0.5)  # it would leave at once
    assert supervisor.thread.is_alive()
    assert supervisor.end() == ["well"]


def test_one_that_has_drifted_says_so_to_the_students() -> None:
    supervisor = Supervisor(Host({"ready": True}, {"drifted": "its logits differ"}))
    assert supervisor.await_down() == "it has drifted: its logits differ"
    assert supervisor.started == []
    assert supervisor.end() == ["well"]


def test_one_that_stands_by_leaves_when_it_is_stopped() -> None:
    supervisor = Supervisor(Host({"ready": True}, {"drifted": "its logits differ"}), stops=True)
    supervisor.thread.join(LIMIT_S)
    assert supervisor.ended == ["teacher 1 left: it has drifted: its logits differ"]


def test_one_that_comes_up_between_is_no_failure_in_a_row() -> None:
    bad = [Host({"refused": "no memory"}) for _ in range(MOST_FAILED - 1)]
    supervisor = Supervisor(
        Host({"ready": True}), *bad, Host({"ready": True}), *bad, Host({"left": {"done": True}})
    )
    supervisor.thread.join(LIMIT_S)
    assert supervisor.ended == ["well"]
    assert stood_down(supervisor.store, ["teacher1"]) == {}

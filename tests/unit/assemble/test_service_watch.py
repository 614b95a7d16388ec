"""What is asked of the hosts beside the steps, and what is made of their answers."""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass, field
from typing import Any

import pytest

from distill_dist.assemble.service_watch import ServiceWatch
from distill_dist.teacher.report import _SUMMED
from distill_dist.telemetry import Totals

DEADLINE_S = 20.0


@dataclass
class Hosts:
    """Two hosts that have answered so many rows; one may hang."""

    rows: dict[str, int] = field(default_factory=lambda: {"teacher2": 40, "teacher3": 40})
    may_answer: threading.Event = field(default_factory=threading.Event)
    is_asked: threading.Event = field(default_factory=threading.Event)
    asked: int = 0

    def counters(self) -> dict[str, dict[str, int]]:
        self.asked += 1
        self.is_asked.set()
        assert self.may_answer.wait(DEADLINE_S)
        return {
            name: {**dict.fromkeys(_SUMMED, 0), "misses": rows, "busy_ms": 10 * rows, "damaged": rows}
            for name, rows in self.rows.items()
        }


@dataclass
class Telemetry:
    """What was written, by step."""

    totals: Totals = field(default_factory=Totals)
    written: list[tuple[int, dict[str, float]]] = field(default_factory=list)

    def write(self, step: int, scalars: dict[str, float]) -> None:
        self.written.append((step, scalars))


def watched(hosts: Hosts) -> tuple[ServiceWatch, Telemetry]:
    telemetry = Telemetry()
    teacher: Any = hosts
    written: Any = telemetry
    target = ServiceWatch(teacher, written, students=2)
    hosts.may_answer.set()
    target.begin(0)
    return target, telemetry


def test_every_interval_has_its_scalars_and_the_epoch_its_line(caplog: pytest.LogCaptureFixture) -> None:
    hosts = Hosts()
    target, telemetry = watched(hosts)
    for step in (5, 10):
        hosts.rows = {name: rows + step for name, rows in hosts.rows.items()}
        target.ask(step)
        target.close(DEADLINE_S)  # the answer is there
    telemetry.totals.elapsed_s, telemetry.totals.waited_s = 4.0, 0.4
    with caplog.at_level(logging.INFO, logger="distill_dist"):
        target.end_epoch(10)
    assert hosts.asked == 3, "the epoch's end needs no further answer"
    assert [step for step, _ in telemetry.written] == [5, 10]
    assert all("teacher3/hit_share" in scalars for _, scalars in telemetry.written)
    (line,) = caplog.messages
    # 15 rows of each, 0.3 s of 8; 0.4 s of 2 students in 4 s
    assert line.startswith(
        "teachers: 30 rows, 0% cached; teachers busy 4% of the time, students wait 5.0%; 30 damaged"
    )


def test_a_host_that_hangs_holds_no_step_up_and_is_not_asked_twice() -> None:
    hosts = Hosts()
    target, telemetry = watched(hosts)
    hosts.may_answer.clear()
    hosts.is_asked.clear()
    for step in (5, 10, 15):
        target.ask(step)
        assert hosts.is_asked.wait(DEADLINE_S)
    assert hosts.asked == 2
    assert telemetry.written == []
    hosts.rows["teacher2"] += 8
    hosts.may_answer.set()
    target.end_epoch(15)
    assert hosts.asked == 3, "the answer of step 5 is not that of the epoch's end"
    assert [step for step, _ in telemetry.written] == [5]


def test_a_host_that_was_silent_for_a_while_is_not_counted_from_its_start() -> None:
    hosts = Hosts()
    target, telemetry = watched(hosts)
    silent = hosts.rows.pop("teacher3")
    hosts.rows["teacher2"] += 1
    target.ask(5)
    target.close(DEADLINE_S)
    hosts.rows = {"teacher2": 42, "teacher3": silent + 3}
    target.ask(10)
    target.close(DEADLINE_S)
    target.ask(15)
    assert [scalars.get("teacher3/damaged") for _, scalars in telemetry.written] == [None, 3]
    target.close(DEADLINE_S)
    target.end_epoch(15)
    assert target._epoch["teacher3"]["misses"] == silent + 3

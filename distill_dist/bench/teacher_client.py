"""A client process of the teacher benchmark: it asks hosts as a student does, and checks every answer to the bit."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch

from distill_dist.bench.teacher_store import StoredCases, as_variant, load_cases
from distill_dist.bench.teacher_world import ADDRESS, END_S, RELEASE_S, START_S, Membership, meet
from distill_dist.children import child_job
from distill_dist.comm.environment import pin_interface
from distill_dist.comm.rpc_world import RpcWorld
from distill_dist.config.schema_teacher import TeacherConfig
from distill_dist.records import Batch, TeacherSignal
from distill_dist.teacher.client import RemoteTeacher

# Variants below are asked for by whoever measures the hosts alone.
FIRST_VARIANT = 1 << 16
# Questions under way per host while throughput is measured: the hosts are to be the limit, not the client.
AHEAD_PER_HOST = 8


def remote_teacher(world: RpcWorld, member: Membership) -> RemoteTeacher:
    """The product's client, with the configuration's defaults."""
    config = TeacherConfig()
    return RemoteTeacher(
        world,
        names=member.hosts,
        student=member.students.index(member.name),
        deadline_s=config.deadline_s,
        patience_s=config.patience_s,
        lease_s=config.lease_s,
    )


def rows_per_s(teacher: RemoteTeacher, cases: StoredCases, *, num_hosts: int, passes: int) -> float:
    """Rows a second of hosts whose caches know none of them: ``passes`` over the cases per host, one after another."""
    items = [
        as_variant(batch, FIRST_VARIANT - 1 - number)
        for number in range(passes * num_hosts)
        for batch in cases.batches
    ]
    begin = time.perf_counter()
    ahead = AHEAD_PER_HOST * num_hosts
    for _ in teacher.signals(items, lambda batch: (batch,), cases.spec, ahead=ahead):
        pass
    return sum(len(batch.labels_B) for batch in items) / (time.perf_counter() - begin)


def questions(number: int, clients: int, cases: int) -> Iterator[tuple[int, int]]:
    """(case, variant) that client ``number`` of ``clients`` asks for, without end.

    In turns one that nobody has asked for, for the workers, and one that the next client has or asks for right now,
    for the caches.
    """
    count = 0
    while True:
        for who in (number, (number + 1) % clients):
            place = who + clients * count
            yield place % cases, FIRST_VARIANT + place // cases
        count += 1


@dataclass
class Exchange:
    """Requests of one client: how many it made and how many were rightly answered, and each one's seconds."""

    asked: int = 0
    right: int = 0
    latency_s: list[float] = field(default_factory=list)

    def run(
        self, teacher: RemoteTeacher, cases: StoredCases, *, number: int, clients: int, seconds: float
    ) -> None:
        """Ask for a batch, await and check its signal, then the next, for ``seconds``."""
        expected = cases.signals()
        until, begin = time.monotonic() + seconds, 0.0

        def asking() -> Iterator[tuple[int, Batch]]:
            nonlocal begin
            for case, variant in questions(number, clients, len(expected)):
                if time.monotonic() >= until:
                    return
                item = case, as_variant(cases.batches[case], variant)
                self.asked += 1
                begin = time.perf_counter()
                yield item

        for (case, _), (signal,) in teacher.signals(asking(), lambda item: (item[1],), cases.spec, ahead=0):
            self.latency_s.append(time.perf_counter() - begin)
            self.right += are_equal(signal, expected[case])


def are_equal(signal: TeacherSignal, expected: TeacherSignal) -> bool:
    """Whether two signals have the same fields, bit for bit."""
    pairs = [(getattr(signal, each.name), getattr(expected, each.name)) for each in fields(TeacherSignal)]
    return all(
        a is b if a is None or b is None else a.dtype == b.dtype and torch.equal(a, b) for a, b in pairs
    )


def main() -> None:
    """Measure the hosts, as client 0; then ask them for a while beside all other clients."""
    job = child_job()
    passes, seconds = job.pop("passes"), job.pop("seconds")
    member = Membership(**job)
    number, clients = member.students.index(member.name), len(member.students)
    cases = load_cases(Path(member.folder))
    pin_interface(os.environ, ADDRESS)
    store = member.reach()
    world = member.join(store)
    teacher = remote_teacher(world, member)
    found: dict[str, Any] = {}
    if number == 0:
        found["rows_per_s"] = rows_per_s(teacher, cases, num_hosts=len(member.hosts), passes=passes)
        before = teacher.counters()
    meet(store, "begin", clients, timeout_s=START_S)
    exchange = Exchange()
    try:
        exchange.run(teacher, cases, number=number, clients=clients, seconds=seconds)
    except Exception as error:  # whatever it is, the request that it belongs to is lost, and is to be counted
        found["error"] = f"{type(error).__name__}: {error}"
    meet(store, "end", clients, timeout_s=seconds + END_S)
    if number == 0:
        found["counters"] = {"before": before, "after": teacher.counters()}
    meet(store, "counted", clients, timeout_s=END_S)  # counters ask hosts, which end when all let go
    teacher.release(timeout_s=RELEASE_S)
    world.leave()
    found |= {"asked": exchange.asked, "right": exchange.right, "latency_s": exchange.latency_s}
    Path(member.result).write_text(json.dumps(found), encoding="utf-8")
    os._exit(0)  # threads of torch's agents may still run, as in a host


if __name__ == "__main__":
    main()

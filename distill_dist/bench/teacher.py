"""What the teacher service costs a student, how it scales over hosts, what its wire types save, and what it loses.

The service is the product's: RPC world, hosts, caches, codec, client. Only the model in each worker is replaced, by a
stand-in that replays stored rows after the time that another device would need.
"""

from __future__ import annotations

import itertools
import os
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from distill_dist.bench.distillation_cases import SHAPES, Shape, make_setting
from distill_dist.bench.teacher_client import remote_teacher, rows_per_s
from distill_dist.bench.teacher_store import Pace, StoredCases, encode_cases
from distill_dist.bench.teacher_student import MeasuredStudent, Share, orders
from distill_dist.bench.teacher_wire import measure_wire
from distill_dist.bench.teacher_world import ADDRESS, END_S, RELEASE_S, START_S, processes
from distill_dist.comm.environment import pin_interface
from distill_dist.config.schema_teacher import TeacherConfig
from distill_dist.records import SignalSpec
from distill_dist.teacher.client import RemoteTeacher
from distill_dist.teacher.row_codec import WireTypes

# Of a student's step, how long a stand-in takes for its batch.
WORKER_SHARE = 0.9
# What the figures are to reach; int8's are of `wire`.
BARS = {
    "hidden_teacher_share": 0.97,
    "warm_cache_share": 0.97,
    "scaling_4_hosts": 3.6,
    "int8_bytes_ratio": 3.5,
    "int8_cosine": 0.9999,
    "lost_requests": 0,
}
_COLD, _WARM = "hidden_teacher", "warm_cache"


@dataclass(frozen=True)
class Sizes:
    """What is measured, and for how long."""

    rounds: int = 5  # by each way
    passes: int = 2  # over the cases, with signals of the service; with those that are ready 1
    cases: int = 16  # batches of SST-2's lengths
    hosts: int = 4
    clients: int = 32
    seconds: float = 60.0  # for which the clients ask
    scaling_passes: int = 4  # over the cases per host, for the throughput
    shape: Shape = SHAPES["minilm"]


def measure_teacher(sizes: Sizes, *, progress: Callable[[str], None], seed: int = 0) -> dict[str, Any]:
    """All figures. RuntimeError where a process fails, with its log.

    A student's steps in this process beside one host, then ``sizes.clients`` processes beside ``sizes.hosts``.
    """
    progress("building")
    setting = make_setting(sizes.shape, device=torch.device("cpu"), count=sizes.cases, seed=seed)
    spec = setting.objective.signal_spec
    assert spec is not None
    progress("wire types")
    wire = measure_wire(setting.cases, spec)
    progress("a student's step")
    student = MeasuredStudent(setting)
    step_s = student.step_s(repeats=3)
    stored = encode_cases(setting.cases, spec, step_s=step_s, types=WireTypes())
    pin_interface(os.environ, ADDRESS)
    with tempfile.TemporaryDirectory(prefix="bench-teacher-") as place:
        folder = Path(place)
        stored.save(folder)
        pace = Pace(folder, WORKER_SHARE * statistics.mean(step_s))
        one = _beside_one_host(folder, stored, student, spec, pace, sizes, progress, seed)
        many = _beside_many_hosts(folder, sizes, progress)
    scaling = many.pop("rows_per_s") / one["rows_per_s"]
    return {
        "benchmark": "teacher",
        "hidden_teacher_share": one[_COLD]["share"],
        "warm_cache_share": one[_WARM]["share"],
        # the bar's name where it can be held against it
        f"scaling_{sizes.hosts}_hosts": scaling,
        "wire": wire,
        **{key: many.pop(key) for key in ("lost_requests", "p99_ms")},
        "bars": BARS,
        "threads": torch.get_num_threads(),
        "processors": len(os.sched_getaffinity(0)),
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "sizes": asdict(sizes),
        "worker_share": WORKER_SHARE,
        "prefetch": TeacherConfig().prefetch,
        "student": one,
        "exchange": many,
    }


def _beside_one_host(
    folder: Path,
    stored: StoredCases,
    student: MeasuredStudent,
    spec: SignalSpec,
    pace: Pace,
    sizes: Sizes,
    progress: Callable[[str], None],
    seed: int,
) -> dict[str, Any]:
    """Steps with signals ready, computed in time and cached; then the host alone."""
    progress("starting a host")
    with processes(folder, "one", num_students=1, num_hosts=1, cases=folder) as running:
        member = running.as_member(running.member.students[0])
        world = member.join(running.store)
        teacher = remote_teacher(world, member)
        try:
            found = in_turns(student, teacher, spec, pace, sizes, progress, seed)
            progress("throughput of one host")
            found["rows_per_s"] = rows_per_s(teacher, stored, num_hosts=1, passes=sizes.scaling_passes)
        finally:
            teacher.release(timeout_s=RELEASE_S)
            world.leave()
        running.results(END_S)
    return found


def in_turns(
    student: MeasuredStudent,
    teacher: RemoteTeacher,
    spec: SignalSpec,
    pace: Pace,
    sizes: Sizes,
    progress: Callable[[str], None],
    seed: int,
) -> dict[str, Any]:
    """Served passes, the two kinds in turns, with a pass of signals that are ready between any two."""
    ahead, new = TeacherConfig().prefetch, itertools.count(1)
    variants = {_COLD: new, _WARM: itertools.repeat(0)}
    order = orders(sizes.cases, seed=seed)
    # fills the cache
    student.served(teacher, spec, [next(order)], variants[_WARM], ahead=ahead)
    before = student.ready(next(order))
    shares: dict[str, list[Share]] = {kind: [] for kind in variants}
    for number, (kind, of_kind) in itertools.product(range(sizes.rounds), shares.items()):
        progress(f"{kind} {number + 1}/{sizes.rounds}")
        # the step as it was measured just now: others may load the machine
        pace.seconds = WORKER_SHARE * before.seconds
        passes = [next(order) for _ in range(sizes.passes)]
        served = student.served(teacher, spec, passes, variants[kind], ahead=ahead)
        after = student.ready(next(order))
        of_kind.append(Share(before, served, after))
        before = after
    ready = [share.before for share in shares[_COLD]]
    step_s = statistics.median(block.seconds for block in ready)
    pace.seconds = WORKER_SHARE * step_s
    return {
        "ready_step_ms": 1000 * step_s,
        **{kind: _figures(of_kind) for kind, of_kind in shares.items()},
        "counters": teacher.counters(),
    }


def _figures(shares: list[Share]) -> dict[str, Any]:
    throughput = [share.of_throughput for share in shares]
    return {
        "share": statistics.median(throughput),
        "quartiles": np.quantile(throughput, [0.25, 0.75]).tolist(),
        "cpu_share": statistics.median(share.of_cpu for share in shares),
        "step_ms": 1000 * statistics.median(share.served.seconds for share in shares),
        "waited_ms": 1000 * statistics.median(share.served.waited_s for share in shares),
        # of what the steps used: about 1 where the host kept up, less where steps lived on what was there before
        "computed_share": statistics.mean(share.served.computed for share in shares),
    }


def _beside_many_hosts(folder: Path, sizes: Sizes, progress: Callable[[str], None]) -> dict[str, Any]:
    """What clients in processes of their own saw; ``rows_per_s`` of the hosts before that, asked by one of them."""
    progress(f"starting {sizes.hosts} hosts")
    with processes(
        folder, "many", num_students=sizes.clients, num_hosts=sizes.hosts, cases=folder
    ) as running:
        progress(f"starting {sizes.clients} clients")
        for name in running.member.students:
            running.start(
                "distill_dist.bench.teacher_client", name, passes=sizes.scaling_passes, seconds=sizes.seconds
            )
        found = running.results(2 * START_S + sizes.seconds + 2 * END_S)
    return exchange_figures([found[name] for name in running.member.students], seconds=sizes.seconds)


def exchange_figures(clients: list[dict[str, Any]], *, seconds: float) -> dict[str, Any]:
    """Sums over ``clients``, and percentiles of all their requests together."""
    latency_ms = 1000 * np.array([each for client in clients for each in client["latency_s"]])
    if not len(latency_ms):
        raise RuntimeError(f"no request was answered: {[client.get('error') for client in clients]}")
    asked, right = (sum(client[key] for client in clients) for key in ("asked", "right"))
    counters = clients[0]["counters"]
    cached, rows = (
        sum(
            after[key] - counters["before"][host][key]
            for host, after in counters["after"].items()
            for key in keys
        )
        for keys in (("memory_hits",), ("memory_hits", "misses"))
    )
    return {
        "rows_per_s": clients[0]["rows_per_s"],
        "requests": asked,
        "lost_requests": asked - right,
        "requests_per_s": right / seconds,
        **{f"p{percent}_ms": float(np.percentile(latency_ms, percent)) for percent in (50, 99)},
        "max_ms": float(latency_ms.max()),
        "cached_share": cached / rows,
        "errors": [client["error"] for client in clients if "error" in client],
    }

"""What the teachers' counters say of a while: scalars, and what would make the run faster (docs/SUMMARY.md)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

Counters = Mapping[str, Mapping[str, int]]
"""Host -> name -> count since its start; a host that was started again counts from 0."""

# The name of what teaches inside the student's process, among hosts.
IN_PROCESS = "in_process"
# Shares of the students' time: above the first they lose by waiting, below the second they do not wait at all.
WAITING, NO_WAIT = 0.1, 0.02
# Shares of the teachers' time: above the first they are full, below the second a wait is not for want of them, and
# below the third they have nothing to do.
FULL, HALF, IDLE = 0.8, 0.5, 0.1
_SUMMED = (
    "memory_hits", "disk_hits", "misses", "busy_ms", "restarting_ms", "real_tokens", "padded_tokens", "restarts",
    "out_of_memory", "damaged", "answered_bytes",
)  # fmt: skip


@dataclass(frozen=True)
class Served:
    """What one host did in an epoch, or all of them together."""

    rows: int  # that were asked for
    hits: int  # of them answered from a cache
    busy_s: float  # spent on computing
    real_tokens: int  # computed ones
    padded_tokens: int  # computed ones, with padding
    restarts: int  # of the worker
    out_of_memory: int  # batches that were halved
    damaged: int  # rows of the disk cache that were dropped
    bytes: int  # of answers
    waiting_tokens: int  # the most that waited at once

    def scalars(self) -> dict[str, float]:
        """For TensorBoard; shares are 0 to 1."""
        found: dict[str, float] = {}
        if self.rows:
            found |= {"hit_share": self.hits / self.rows, "bytes_per_row": self.bytes / self.rows}
        if self.busy_s:
            found["tokens_per_s"] = self.real_tokens / self.busy_s
        if self.padded_tokens:
            found["fill_share"] = self.real_tokens / self.padded_tokens
        for name in ("restarts", "out_of_memory", "damaged", "waiting_tokens"):
            found[name] = getattr(self, name)
        return found


@dataclass(frozen=True)
class ServiceReport:
    """Of one interval, or one epoch."""

    hosts: dict[str, Served]
    all: Served
    elapsed_s: float

    @property
    def busy_share(self) -> float:
        """Of the hosts' time, spent on computing."""
        return min(1.0, self.all.busy_s / (self.elapsed_s * len(self.hosts)))

    def scalars(self) -> dict[str, float]:
        """For TensorBoard: of all hosts together, and of each."""
        found = {f"teacher/{name}": value for name, value in self.all.scalars().items()}
        for host, served in self.hosts.items():
            found |= {f"{host}/{name}": value for name, value in served.scalars().items()}
        return {**found, "teacher/busy_share": self.busy_share}

    def advice(self, wait_share: float) -> str:
        """What would help where students wait for so much of their time, 0 to 1; one clause (docs/SUMMARY.md).

        Advices that contradict each other have `balanced` between them: one epoch is one sample of a machine.
        """
        here = any(name.startswith(IN_PROCESS) for name in self.hosts)
        if wait_share > WAITING:
            if here:
                return "teacher processes would compute while the students do (cluster.teachers)"
            if self.all.restarts:
                return "a worker was started again meanwhile"
            if self.busy_share > FULL:
                return "more teachers would help (cluster.teachers)"
            if self.busy_share < HALF:
                return "asking further ahead would help (teacher.prefetch)"
            return "more teachers (cluster.teachers) or asking further ahead (teacher.prefetch) would help"
        if wait_share >= NO_WAIT:
            return "balanced, waiting costs little"
        if self.busy_share < IDLE and not here:
            return "the teachers have little to do: more students would help, or fewer teachers"
        return "balanced, students do not wait"

    def line(self, wait_share: float) -> str:
        """For the log; ``wait_share`` of the students' time, 0 to 1."""
        happened = ", ".join(
            f"{count} {words}"
            for count, words in (
                (self.all.restarts, "worker restart(s)"),
                (self.all.out_of_memory, "batch(es) halved for memory"),
                (self.all.damaged, "damaged row(s) dropped from the disk cache"),
            )
            if count
        )
        cached = self.all.hits / self.all.rows if self.all.rows else 0.0
        return (
            f"{self.all.rows} rows, {cached:.0%} cached; teachers busy {self.busy_share:.0%} of "
            f"the time, students wait {wait_share:.1%}{happened and '; '}{happened}: {self.advice(wait_share)}"
        )


def service_report(before: Counters, now: Counters, *, elapsed_s: float) -> ServiceReport | None:
    """What happened between the two; None where nothing did."""
    since = {host: _since(before.get(host, {}), counts) for host, counts in now.items()}
    hosts = {
        host: _served(counts, now[host].get("waiting_tokens", 0)) for host, counts in sorted(since.items())
    }
    total = {name: sum(counts[name] for counts in since.values()) for name in _SUMMED}
    everything = _served(total, max((served.waiting_tokens for served in hosts.values()), default=0))
    if not any(total.values()) or elapsed_s <= 0:
        return None
    return ServiceReport(hosts, everything, elapsed_s)


def served_rows(counters: Counters, *, whole: bool) -> tuple[int, int]:
    """(rows that were asked for, rows that were computed); those of this process's own teachers unless ``whole``.

    Hosts in other processes count for all students: one student's answer says it all.
    """
    own = [counts for host, counts in counters.items() if whole or host.startswith(IN_PROCESS)]
    asked = sum(counts.get(name, 0) for counts in own for name in ("memory_hits", "disk_hits", "misses"))
    return asked, sum(counts.get("computed_rows", 0) for counts in own)


def _served(counts: Mapping[str, int], waiting_tokens: int) -> Served:
    hits = counts["memory_hits"] + counts["disk_hits"]
    return Served(
        rows=hits + counts["misses"],
        hits=hits,
        # a worker that is started again computes nothing meanwhile
        busy_s=max(0, counts["busy_ms"] - counts["restarting_ms"]) / 1000,
        real_tokens=counts["real_tokens"],
        padded_tokens=counts["padded_tokens"],
        restarts=counts["restarts"],
        out_of_memory=counts["out_of_memory"],
        damaged=counts["damaged"],
        bytes=counts["answered_bytes"],
        waiting_tokens=waiting_tokens,
    )


def _since(before: Mapping[str, int], now: Mapping[str, int]) -> dict[str, int]:
    """A host that was started again has counted less than before: all of it is new."""
    again = any(now.get(name, 0) < before.get(name, 0) for name in _SUMMED)
    return {name: now.get(name, 0) - (0 if again else before.get(name, 0)) for name in _SUMMED}

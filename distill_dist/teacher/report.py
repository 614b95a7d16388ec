"""What an epoch's counters say of the teachers: scalars, and what would make the run faster."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

Counters = Mapping[str, Mapping[str, int]]
"""Host -> name -> count since its start; a host that was started again counts from 0."""

# Shares of an epoch's time between which nothing is worth a change.
LITTLE, MUCH = 0.02, 0.8


@dataclass(frozen=True)
class ServiceReport:
    """Of one epoch, over all hosts; shares are 0 to 1."""

    rows: int  # that were asked for
    hit_share: float  # of them answered from a cache
    busy_share: float  # of the hosts' time spent on computing
    fill_share: float  # of computed tokens that were real
    tokens_per_s: float  # real ones, computed by a host while it was busy
    wait_share: float  # of the students' time

    def scalars(self) -> dict[str, float]:
        """For TensorBoard."""
        names = ("hit_share", "busy_share", "fill_share", "tokens_per_s")
        return {f"teacher/{name}": getattr(self, name) for name in names}

    def advice(self) -> str:
        """What would help; one clause."""
        if self.wait_share > LITTLE:
            if self.busy_share > MUCH:
                return "more teachers would help (cluster.teachers)"
            return "asking further ahead would help (teacher.prefetch)"
        if self.busy_share < LITTLE:
            return "the teachers have nothing to do: more students would help, or fewer teachers"
        return "students do not wait"

    def __str__(self) -> str:
        return (
            f"{self.rows} rows, {self.hit_share:.0%} cached; teachers busy {self.busy_share:.0%} of the time, students "
            f"wait {self.wait_share:.1%}: {self.advice()}"
        )


def service_report(
    before: Counters, now: Counters, *, elapsed_s: float, wait_share: float
) -> ServiceReport | None:
    """What happened between the two; None where nothing was asked."""
    sums = {
        name: sum(_since(before.get(host, {}), counts, name) for host, counts in now.items())
        for name in ("memory_hits", "disk_hits", "misses", "busy_ms", "real_tokens", "padded_tokens")
    }
    hits = sums["memory_hits"] + sums["disk_hits"]
    rows = hits + sums["misses"]
    if not rows or elapsed_s <= 0:
        return None
    busy_s = sums["busy_ms"] / 1000
    return ServiceReport(
        rows=rows,
        hit_share=hits / rows,
        busy_share=min(1.0, busy_s / (elapsed_s * len(now))),
        fill_share=sums["real_tokens"] / sums["padded_tokens"] if sums["padded_tokens"] else 1.0,
        tokens_per_s=sums["real_tokens"] / busy_s if busy_s else 0.0,
        wait_share=wait_share,
    )


def _since(before: Mapping[str, int], now: Mapping[str, int], name: str) -> int:
    """A host that was started again has counted less than before: all of it is new."""
    count, old = now.get(name, 0), before.get(name, 0)
    return count - old if count >= old else count

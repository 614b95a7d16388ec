"""How long several models take for the same rows, measured in one run: every batch goes to each of them in turn."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from distill_dist.records import Batch

Run = Callable[[Batch], object]


@dataclass(frozen=True)
class Timing:
    """Milliseconds for a batch: median and 95th percentile over batches and rounds; rows a second at the median."""

    median_ms: float
    p95_ms: float
    rows_per_s: float


@dataclass(frozen=True)
class Contender:
    """A line of the table. ``accuracy`` is on dev; ``timings`` by rows of a batch; ``bytes`` of the weights on disk."""

    name: str
    timings: dict[int, Timing]
    bytes: int
    parameters: int
    accuracy: float | None


@dataclass(frozen=True)
class LatencyTable:
    """All contenders, and where and how they were timed."""

    contenders: tuple[Contender, ...]
    threads: int
    rounds: int
    rows: dict[int, int]  # rows of a batch -> rows timed in a round
    mean_length: float  # tokens of those rows
    processor: str
    missing: str | None = None  # a contender that is not there, and why


def time_models(
    models: Mapping[str, Run],
    batches: Mapping[int, Sequence[Batch]],
    *,
    rounds: int,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, dict[int, Timing]]:
    """For each model, the timings of each size of batch, after one round that does not count.

    Who is first with a batch changes from batch to batch, so that a cache warmed by one serves all alike.
    """
    taken: dict[tuple[str, int], list[float]] = {(name, size): [] for name in models for size in batches}
    names = list(models)
    for round_ in range(rounds + 1):
        for size, of_size in batches.items():
            for number, batch in enumerate(of_size):
                first = (number + round_) % len(names)
                for name in (*names[first:], *names[:first]):
                    begin = clock()
                    models[name](batch)
                    if round_:
                        taken[name, size].append(clock() - begin)
    return {name: {size: _timing(taken[name, size], size) for size in batches} for name in models}


def _timing(seconds: Sequence[float], rows: int) -> Timing:
    median, p95 = np.quantile(np.array(seconds) * 1e3, [0.5, 0.95])
    return Timing(float(median), float(p95), 1e3 * rows / float(median))


def as_text(table: LatencyTable) -> str:
    """The table for a terminal."""
    sizes = list(table.rows)
    titles = "".join(f"{f'batch {size}: ms':>16}{'p95':>9}{'rows/s':>9}" for size in sizes)
    lines = [f"{'':18}{titles}{'MB':>9}{'parameters':>13}{'dev acc.':>10}"]
    for each in table.contenders:
        cells = "".join(
            f"{timing.median_ms:>16.2f}{timing.p95_ms:>9.2f}{timing.rows_per_s:>9.0f}"
            for timing in (each.timings[size] for size in sizes)
        )
        accuracy = "" if each.accuracy is None else f"{each.accuracy:.4f}"
        lines.append(f"{each.name:18}{cells}{each.bytes / 1e6:>9.2f}{each.parameters:>13,}{accuracy:>10}")
    lines.append(conditions(table))
    return "\n".join(lines)


def conditions(table: LatencyTable) -> str:
    """One sentence: on what, with how many threads and rows."""
    rows = " and ".join(f"{rows} rows in batches of {size}" for size, rows in table.rows.items())
    missing = f" {table.missing}" if table.missing else ""
    threads = f"{table.threads} thread" + "s" * (table.threads > 1)
    return (
        f"CPU ({table.processor}), {threads} for every model, {table.rounds} interleaved rounds over {rows} of dev "
        f"(on average {table.mean_length:.0f} tokens), padded to the longest of a batch.{missing}"
    )


def processor_name() -> str:
    """What Linux calls the processor; `unknown` elsewhere."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            found = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    except OSError:
        found = []
    return found[0] if found else "unknown"

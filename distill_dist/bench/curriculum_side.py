"""Our side of the benchmark of the curriculum: one plan, a resume, and what batches are made of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from distill_dist.bench.measured_process import PeakMemory, Stopwatch, answer
from distill_dist.bench.score_snapshot import drop_cached
from distill_dist.curriculum.order import RandomOrder
from distill_dist.curriculum.pacing import WHOLE, Pacing, Stage, stages_of_epoch
from distill_dist.curriculum.plan import Plan, PlanSpec, Ranked, build_plan, load_plan
from distill_dist.curriculum.snapshot import Snapshot

EPOCHS, EPOCH = 10, 3  # the pool grows from 50 to 60 % of the rows: a new cut of it at each of 128 stages
WINDOW = 64  # global batches that are asked for at once, as `batch.length_window` does
KEY = "benchmark"


def paced_spec(rows: int, batch: int, seed: int) -> PlanSpec:
    """An epoch of easy to hard in which the pool grows linearly, as the configuration's defaults have it."""
    steps = -(-rows // batch)
    pacing = Pacing("linear", total_steps=EPOCHS * steps)
    stages = stages_of_epoch(pacing, epoch=EPOCH, steps_per_epoch=steps, align=WINDOW)
    return PlanSpec(seed=seed, epoch=EPOCH, batch_size=batch, stages=tuple(stages))


def _ranked(snapshot: Snapshot) -> Ranked:
    return Ranked(snapshot.sizes, snapshot.scores)


def _memory_bytes(ranked: Ranked) -> int:
    """`curriculum.memory_mib` as its reference says: 2 bytes a row hold the orders inside all shards."""
    return max(1 << 30, 2 * len(ranked.sizes) * int(ranked.sizes.max()))


class _Counted:
    """A ``Reduce`` of one process that counts what it is asked to sum over all."""

    def __init__(self) -> None:
        self.calls = self.bytes = 0

    def __call__(self, counts: np.ndarray) -> np.ndarray:
        self.calls, self.bytes = self.calls + 1, self.bytes + counts.nbytes
        return counts


def plan(
    *, snapshot: str, saved: str, batch: int, seed: int, position: int, num_calls: int
) -> dict[str, Any]:
    """One epoch: seconds from scores on disk to the saved plan, memory, ids per second, batch at ``position``.

    The first window of ids makes the orders inside shards: it is timed by itself, and its memory counts.
    ``num_calls`` of a window, and of a batch, are timed for the rates.
    """
    reduce = _Counted()
    drop_cached(Path(snapshot))
    with PeakMemory() as memory:
        with Stopwatch() as cold:
            ranked = _ranked(Snapshot.open(Path(snapshot)))
            spec = paced_spec(ranked.num_rows, batch, seed)
            made = build_plan(spec, ranked, reduce=reduce, memory_bytes=_memory_bytes(ranked))
            made.save(Path(saved), KEY)
        planned = reduce.calls
        with Stopwatch() as first:
            made.rows_at(np.arange(min(WINDOW * batch, ranked.num_rows), dtype=np.int64))
        rates = {size: _rate(made, size * batch, num_calls) for size in (1, WINDOW)}
        found = made.rows_at(np.arange(position, position + batch, dtype=np.int64))
    step_calls = reduce.calls - planned
    with Stopwatch() as warm:  # the same again from the system's cache
        build_plan(made.spec, _ranked(Snapshot.open(Path(snapshot))))
    return {
        "plan_s": cold.seconds,
        "plan_cpu_s": cold.cpu_s,
        "plan_read_bytes": cold.read_bytes,
        "plan_cached_s": warm.seconds,
        "first_window_s": first.seconds,
        "bytes_per_row": memory.bytes / ranked.num_rows,
        "plan_file_bytes": Path(saved).stat().st_size,
        "ids_per_s": rates[WINDOW],
        "ids_per_s_by_batch": rates[1],
        "stages": len(made.spec.stages),
        "reduced": {"per_plan": planned, "bytes_per_plan": reduce.bytes, "per_step": step_calls},
        "batch": found.tolist(),
    }


def _rate(made: Plan, size: int, num_calls: int) -> float:
    """Ids per second, each as (shard, row in it), asked for ``size`` at a time from the epoch's middle on."""
    rows, starts = made.ranked.num_rows, made.ranked.starts
    begins = [(rows // 2 + call * size) % max(rows - size, 1) for call in range(num_calls)]
    ids = min(size, rows)
    with Stopwatch() as watch:
        for begin in begins:
            found = made.rows_at(np.arange(begin, begin + ids, dtype=np.int64))
            shards = np.searchsorted(starts, found, side="right") - 1
            found -= starts[shards]
    return num_calls * ids / watch.cpu_s


def resume(*, snapshot: str, saved: str, batch: int, seed: int, position: int) -> dict[str, Any]:
    """Seconds from a new process (imports left out) and a disk not cached to the batch at ``position``."""
    drop_cached(Path(snapshot), Path(saved))
    with Stopwatch() as watch:
        ranked = _ranked(Snapshot.open(Path(snapshot)))
        spec = paced_spec(ranked.num_rows, batch, seed)
        made = load_plan(Path(saved), KEY, spec, ranked, memory_bytes=_memory_bytes(ranked))
        assert made is not None, "just saved"
        found = made.rows_at(np.arange(position, position + batch, dtype=np.int64))
    with Stopwatch() as window:
        made.rows_at(np.arange(position, min(position + WINDOW * batch, ranked.num_rows), dtype=np.int64))
    return {
        "resume_first_batch_s": watch.seconds,
        "resume_first_window_s": watch.seconds + window.seconds,
        "resume_read_bytes": watch.read_bytes,
        "batch": found.tolist(),
    }


def composition(*, snapshot: str, batches: list[int], num_batches: int, seed: int) -> dict[str, Any]:
    """Standard deviation over ``num_batches`` of the mean confidence of a batch, for each size of ``batches``.

    Everything is admitted; the batches lie all over the epoch. ``exact`` quotas, and ``uniform`` draws.
    """
    opened = Snapshot.open(Path(snapshot))
    ranked = _ranked(opened)
    scores = np.concatenate([opened.scores(block) for block in range(opened.num_blocks)]).astype(np.float64)
    random = RandomOrder(ranked.num_rows, seed)
    found = {}
    for batch in batches:
        spec = replace(paced_spec(ranked.num_rows, batch, seed), stages=(Stage(0, WHOLE),))
        orders = {"exact": build_plan(spec, ranked).rows_at, "uniform": lambda at: random.rows_at(EPOCH, at)}
        means = {name: _batch_means(rows_at, scores, batch, num_batches) for name, rows_at in orders.items()}
        deviations = {name: float(each.std(ddof=1)) for name, each in means.items()}
        found[str(batch)] = deviations | {f"{name}_mean": float(each.mean()) for name, each in means.items()}
    return found


def _batch_means(
    rows_at: Callable[[np.ndarray], np.ndarray], scores: np.ndarray, batch: int, num_batches: int
) -> np.ndarray:
    whole = len(scores) // batch  # the last, smaller batch is left out
    steps = np.linspace(0, whole, min(num_batches, whole), endpoint=False, dtype=np.int64)
    positions = steps[:, None] * batch + np.arange(batch)
    found: np.ndarray = scores[rows_at(positions)].mean(axis=1)
    return found


if __name__ == "__main__":
    answer({"plan": plan, "resume": resume, "composition": composition})

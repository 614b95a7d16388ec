"""The order of one epoch: position -> row, a pure function of (shard sizes, scores, pacing, seed, epoch).

Exact bucket edges and pacing cuts come from integer histograms (selection.py); what is kept are these thresholds
and how many rows of each class every shard has. Rows are found through them, whatever the number of ranks.
"""

from __future__ import annotations

import bisect
import hashlib
import io
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from distill_dist.curriculum.block_orders import BlockOrders
from distill_dist.curriculum.keys import Direction, Unscored, score_keys
from distill_dist.curriculum.levels import Levels
from distill_dist.curriculum.order import rows_at
from distill_dist.curriculum.pacing import WHOLE, Stage, rows_of
from distill_dist.curriculum.scope import Scope
from distill_dist.curriculum.segments import Draws, Strata, cut_segments
from distill_dist.curriculum.selection import Reduce, alone, select
from distill_dist.durable import write_durable

FORMAT = 1
MOST_CLASSES = 1 << 16  # a class is sorted by as a 16-bit number


@dataclass(frozen=True)
class PlanSpec:
    """What determines an epoch's order besides the scores and the shards.

    ``groups`` rank apart from each other (`curriculum.stratify`). ``window_shards`` above 0 keeps the epoch inside
    so many shards at a time.
    """

    seed: int
    epoch: int
    batch_size: int
    stages: tuple[Stage, ...]
    buckets: int = 64
    direction: Direction = "easy_to_hard"
    unscored: Unscored = "hardest"
    once_per_pass: bool = True
    groups: int = 1
    window_shards: int = 0

    @cached_property
    def cuts(self) -> tuple[int, ...]:
        """Edges between levels of difficulty, in units of 1 / WHOLE: of the buckets, and wherever a pool ends."""
        buckets = {index * WHOLE // self.buckets for index in range(1, self.buckets)}
        return tuple(sorted(buckets | {stage.cut for stage in self.stages if stage.cut < WHOLE}))

    @property
    def classes(self) -> int:
        """Classes of rows: levels × groups, in order of difficulty."""
        return (len(self.cuts) + 1) * self.groups

    def classes_admitted(self, stage: Stage) -> int:
        """Classes below this one form the pool of ``stage``."""
        return (bisect.bisect_left(self.cuts, stage.cut) + 1) * self.groups


@dataclass(frozen=True)
class Ranked:
    """The rows to be ordered: block by block, as the shards hold them."""

    sizes: np.ndarray  # int64 [blocks]: rows per shard
    scores: Callable[[int], np.ndarray]  # block -> confidence, float32 [rows]
    groups: Callable[[int], np.ndarray] | None = None  # block -> group of each row, [rows]; None: one group

    @cached_property
    def starts(self) -> np.ndarray:
        """First row of each block, int64 [blocks]."""
        return np.concatenate([[0], np.cumsum(self.sizes)[:-1]]).astype(np.int64)

    @property
    def num_rows(self) -> int:
        """All rows."""
        return int(self.sizes.sum())


class Plan:
    """One epoch's order; :meth:`rows_at` is the plan's ``RowsAt`` of that epoch."""

    def __init__(
        self,
        spec: PlanSpec,
        ranked: Ranked,
        levels: tuple[Levels, ...],
        counts: np.ndarray,
        *,
        memory_bytes: int = 1 << 30,
    ) -> None:
        """``levels`` of each group; ``counts`` [blocks, classes] are rows."""
        self.spec, self.ranked, self.levels, self.counts = spec, ranked, levels, counts
        self._orders = BlockOrders(ranked.sizes, self.classes_of, memory_bytes=memory_bytes)
        self._strata = Strata(spec.batch_size, spec.seed)
        self._scopes: dict[int, Scope] = {}

    def classes_of(self, block: int) -> np.ndarray:
        """Class of each row of ``block``, int64 [rows]: level of difficulty × groups + group."""
        return _classes_of(self.spec, self.ranked, self.levels, block)

    def rows_at(self, positions: np.ndarray) -> np.ndarray:
        """Rows (int64, the shape of ``positions``) that stand at ``positions`` of the epoch, each in [0, rows)."""
        flat = np.asarray(positions, np.int64).reshape(-1)
        number = np.searchsorted(self._ends, flat, side="right")
        rows = np.empty(len(flat), np.int64)
        for scope in range(int(number.min(initial=0)), int(number.max(initial=-1)) + 1):
            chosen = slice(None) if len(self._ends) == 1 else np.flatnonzero(number == scope)
            rows[chosen] = self._scope(scope).rows_at(flat[chosen], self._orders)
        return rows.reshape(np.shape(positions))

    @cached_property
    def windows(self) -> list[np.ndarray]:
        """Blocks of each window, ascending, in the order they are trained; one window of all without windows."""
        blocks = np.arange(len(self.ranked.sizes))
        size = self.spec.window_shards
        if not size:
            return [blocks]
        order = rows_at(blocks, len(blocks), seed=self.spec.seed, epoch=self.spec.epoch)
        return [np.sort(order[start : start + size]) for start in range(0, len(blocks), size)]

    def reading(self) -> tuple[list[tuple[int, ...]], np.ndarray]:
        """The windows that any position draws from, and the first position of each, int64."""
        starts = np.concatenate([[0], self._ends[:-1]])
        used = np.flatnonzero(self._ends > starts)
        return [tuple(self.windows[number].tolist()) for number in used], starts[used]

    def draws(self) -> np.ndarray:
        """How often each class is drawn in the epoch, int64 [classes]."""
        return np.sum([self._scope(number).draws() for number in range(len(self.windows))], axis=0)

    def pool(self, step: int) -> tuple[int, int]:
        """(classes, rows) admitted at ``step`` of the epoch."""
        stage = self._stage(step)
        classes = self.spec.classes_admitted(stage)
        return classes, int(self.counts[:, :classes].sum(dtype=np.int64))

    def _stage(self, step: int) -> Stage:
        starts = [stage.first_step for stage in self.spec.stages]
        return self.spec.stages[bisect.bisect_right(starts, step) - 1]

    @cached_property
    def _ends(self) -> np.ndarray:
        """Position behind each window, int64 [windows]: each gets positions by the rows it has in the pool."""
        if len(self.windows) == 1:
            return np.array([self.ranked.num_rows])
        whole = np.array([self.counts[blocks].sum(axis=0, dtype=np.int64) for blocks in self.windows])
        ends, position = [], 0
        for number in range(len(self.windows)):
            # of the positions that are left, by the pool as it stands when the window begins
            pool = whole[number:, : self._classes_at(position)].sum(axis=1)
            left, size = self.ranked.num_rows - position, int(pool.sum())
            position += round(left * int(pool[0]) / size) if size else 0
            ends.append(position)
        ends[-1] = self.ranked.num_rows
        return np.array(ends, np.int64)

    def _classes_at(self, position: int) -> int:
        return self.spec.classes_admitted(self._stage(position // self.spec.batch_size))

    def _scope(self, number: int) -> Scope:
        if number not in self._scopes:
            while len(self._scopes) > 1:  # positions go forward, and a batch lies in two windows at most
                del self._scopes[next(iter(self._scopes))]
            self._scopes[number] = self._make_scope(number)
        return self._scopes[number]

    def _make_scope(self, number: int) -> Scope:
        spec, blocks = self.spec, self.windows[number]
        counts = self.counts[blocks]
        start, end = int(self._ends[number - 1]) if number else 0, int(self._ends[number])
        segments = cut_segments(
            counts.sum(axis=0, dtype=np.int64),
            list(self._draws(start, end)),
            once_per_pass=spec.once_per_pass,
            seed=spec.seed,
            epoch=spec.epoch * len(self.windows) + number,
            start=start,
        )
        return Scope(
            blocks,
            self.ranked.starts[blocks],
            counts,
            segments,
            self._strata,
            seed=spec.seed,
            epoch=spec.epoch,
        )

    def _draws(self, start: int, end: int) -> Iterator[Draws]:
        """The pools between two positions. A window of shards has the one it begins with."""
        if len(self.windows) > 1:
            yield Draws(end - start, self._classes_at(start))
            return
        edges = [stage.first_step * self.spec.batch_size for stage in self.spec.stages] + [end]
        for stage, first, last in zip(self.spec.stages, edges[:-1], edges[1:], strict=True):
            yield Draws(last - first, self.spec.classes_admitted(stage))

    def save(self, path: Path, key: str) -> None:
        """Writes what was computed, under ``key``, which names everything that it was computed from."""
        buffer = io.BytesIO()
        about = json.dumps({"format": FORMAT, "key": key})
        np.savez(
            buffer,
            about=np.array(about),
            counts=self.counts,
            sizes=np.array([len(levels.scores) for levels in self.levels]),
            scores=np.concatenate([levels.scores for levels in self.levels]),
            hashes=np.concatenate([levels.hashes for levels in self.levels]),
        )
        buffer.write(hashlib.sha256(buffer.getbuffer()).digest())
        write_durable(path, lambda temporary: temporary.write_bytes(buffer.getbuffer()))


def load_plan(
    path: Path, key: str, spec: PlanSpec, ranked: Ranked, *, memory_bytes: int = 1 << 30
) -> Plan | None:
    """The plan saved under ``key``; None where there is none, another one, or a damaged one: it is made again."""
    try:
        content = memoryview(path.read_bytes())
    except OSError:
        return None
    # a zip's own checksums do not cover the headers, which say how much of a member is read
    size = hashlib.sha256().digest_size
    if hashlib.sha256(content[:-size]).digest() != content[-size:]:
        return None
    with np.load(io.BytesIO(content[:-size]), allow_pickle=False) as arrays:
        if json.loads(str(arrays["about"])) != {"format": FORMAT, "key": key}:
            return None
        bounds = np.cumsum(arrays["sizes"])[:-1]
        parts = (np.split(arrays[name], bounds) for name in ("scores", "hashes"))
        levels = tuple(Levels(scores, hashes, seed=spec.seed) for scores, hashes in zip(*parts, strict=True))
        return Plan(spec, ranked, levels, arrays["counts"], memory_bytes=memory_bytes)


def build_plan(
    spec: PlanSpec,
    ranked: Ranked,
    *,
    rank: int = 0,
    size: int = 1,
    reduce: Reduce = alone,
    memory_bytes: int = 1 << 30,
) -> Plan:
    """The plan of ``spec`` over ``ranked``; process ``rank`` of ``size`` reads its share of the shards.

    ``reduce`` adds int64 arrays over the processes; all of them get the same plan.
    """
    assert spec.classes <= MOST_CLASSES, spec.classes
    blocks = range(rank, len(ranked.sizes), size)
    levels = tuple(_select(spec, ranked, blocks, group, reduce) for group in range(spec.groups))
    counts = np.zeros((len(ranked.sizes), spec.classes), np.int64)
    for block in blocks:
        classes = _classes_of(spec, ranked, levels, block)
        counts[block] = np.bincount(classes, minlength=spec.classes)
    return Plan(spec, ranked, levels, reduce(counts).astype(np.uint32), memory_bytes=memory_bytes)


def _keys_of(spec: PlanSpec, ranked: Ranked, block: int) -> np.ndarray:
    return score_keys(ranked.scores(block), direction=spec.direction, unscored=spec.unscored)


def _classes_of(spec: PlanSpec, ranked: Ranked, levels: tuple[Levels, ...], block: int) -> np.ndarray:
    keys, first = _keys_of(spec, ranked, block), int(ranked.starts[block])
    if ranked.groups is None:
        return levels[0].of(keys, first)
    groups = ranked.groups(block)
    found = np.empty(len(keys), np.int64)
    for group in range(spec.groups):
        chosen = np.flatnonzero(groups == group)
        found[chosen] = levels[group].of(keys[chosen], first + chosen) * spec.groups + group
    return found


def _select(spec: PlanSpec, ranked: Ranked, blocks: range, group: int, reduce: Reduce) -> Levels:
    def rows_of_group() -> Iterator[tuple[int | np.ndarray, np.ndarray]]:
        for block in blocks:
            keys, first = _keys_of(spec, ranked, block), int(ranked.starts[block])
            if ranked.groups is None:
                yield first, keys
            else:
                chosen = np.flatnonzero(ranked.groups(block) == group)
                yield first + chosen, keys[chosen]

    num_rows = ranked.num_rows
    if ranked.groups is not None:
        mine = sum(np.count_nonzero(ranked.groups(block) == group) for block in blocks)
        num_rows = int(reduce(np.array([mine], np.int64))[0])
    # a small group may be all in before its share says so: the thresholds behind lie above every row
    ranks = [min(rows_of(cut, num_rows), num_rows) for cut in spec.cuts]
    return select(rows_of_group, ranks, seed=spec.seed, reduce=reduce)

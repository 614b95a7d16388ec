"""Rows drawn out of train: splits of their own (`data.hold_out`), or left away (`data.max_rows`)."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from distill_dist.config.schema_data import DataConfig
from distill_dist.data.rows import BadRow, RawRow, TextRow, check_row
from distill_dist.data.sources import Opened, Source
from distill_dist.data.tasks import Task
from distill_dist.errors import UserError

TRAIN, LEFT_OUT = 0, 255  # numbers of where a row goes; the splits of `data.hold_out` count from 1


def with_held_out(config: DataConfig, task: Task, sources: dict[str, Source]) -> dict[str, Source]:
    """``sources`` with train as what is left of it, and a source for every split of ``config.hold_out``."""
    if drawn(config) is None:
        return sources
    if "train" not in sources:
        raise UserError("data.hold_out and data.max_rows draw from train, which data.splits does not name")
    draw = _Draw(sources["train"], task.labels, config)
    train = {"train": draw.part(TRAIN, "")}
    held_out = {
        split: draw.part(number, split) for number, split in enumerate(config.hold_out, start=TRAIN + 1)
    }
    return {**sources, **train, **held_out}


def drawn(config: DataConfig) -> dict[str, Any] | None:
    """What determines the draws, JSON; None where there is none."""
    if not config.hold_out and not config.max_rows:
        return None
    return {"hold_out": dict(config.hold_out), "max_rows": config.max_rows, "seed": config.draw_seed}


def drawn_for(request: Mapping[str, Any]) -> dict[str, Any] | None:
    """The same of what a folder was prepared from: ``request`` as its manifest has it."""
    found: dict[str, Any] | None = request["splits"]["train"].get("drawn")
    return found and {key: value for key, value in found.items() if key != "part"}


def draw_rows(keys: np.ndarray, counts: Mapping[str, int], *, keep: int, place: str) -> np.ndarray:
    """Where each row goes, uint8 [N]: a split's number, in the order of ``counts`` from 1, TRAIN or LEFT_OUT.

    ``keys`` uint64 [N]: rows of one key go together, in the order of the keys, exactly ``counts`` of them to each
    split. Of the others at most ``keep`` stay (0: all). Raises UserError, which says it of ``place``, where there are
    not enough.
    """
    _, group_N, sizes = np.unique(keys, return_inverse=True, return_counts=True)
    asked = sum(counts.values())
    if counts and asked >= len(keys):
        raise UserError(
            f"data.hold_out takes {asked} rows, and {place} has {len(keys)} good ones: take fewer"
        )
    goes = np.zeros(len(sizes), dtype=np.uint8)
    free = np.arange(len(sizes))
    for number, (split, count) in enumerate(counts.items(), start=TRAIN + 1):
        taken = _at_most(sizes[free], count)
        if sizes[free][taken].sum() < count:
            raise UserError(
                f"data.hold_out.{split}={count}: equal texts stay together, and {place} has too few single ones to "
                "make up that number: take another"
            )
        goes[free[taken]] = number
        free = free[~taken]
    if keep:
        kept = _at_most(sizes[free], keep)
        if len(keys) and not kept.any():
            raise UserError(
                f"data.max_rows={keep}: equal texts stay together, and every text of {place} stands there more often: "
                "take more rows"
            )
        goes[free[~kept]] = LEFT_OUT
    return goes[group_N]


def _at_most(sizes: np.ndarray, count: int) -> np.ndarray:
    """The first groups that fit into ``count`` rows, filled up with single ones, bool [len(sizes)]."""
    taken = np.cumsum(sizes) <= count
    missing = count - int(sizes[taken].sum())
    taken[np.flatnonzero(~taken & (sizes == 1))[:missing]] = True
    return taken


@dataclass(frozen=True)
class _Draw:
    """One reading of train decides where its rows go; the parts read it again."""

    train: Source
    labels: tuple[str, ...]
    config: DataConfig

    def part(self, number: int, split: str) -> Source:
        """The source of the rows that go to ``number``."""
        identity = {**self.train.identity, "drawn": {**(drawn(self.config) or {}), "part": split}}
        place = f"{self.train.place}, held out as {split}" if split else self.train.place
        return replace(self.train, place=place, identity=identity, open=lambda: self._open(number))

    def _open(self, number: int) -> Opened:
        goes = self._goes
        _, rows = self.train.open()
        return int((goes == number).sum()), _those(rows, goes, number)

    @cached_property
    def _goes(self) -> np.ndarray:
        """Where each row of train goes, bad ones included: they stay in it, to be counted."""
        _, rows = self.train.open()
        keys, good = array("Q"), bytearray()  # 9 bytes a row
        for row in rows:
            checked = check_row(row, self.labels) if isinstance(row, RawRow) else row
            good.append(isinstance(checked, TextRow))
            if isinstance(checked, TextRow):
                keys.append(row_key(checked, self.config.draw_seed))
        goes = np.full(len(good), TRAIN, dtype=np.uint8)
        if not len(keys):  # whoever writes train says so, and what is wrong with its rows
            return goes
        num_bad = len(good) - len(keys)
        place = f"{self.train.place}{f' ({num_bad} rows are bad)' if num_bad else ''}"
        goes[np.frombuffer(good, dtype=bool)] = draw_rows(
            np.frombuffer(keys, dtype=np.uint64),
            self.config.hold_out,
            keep=self.config.max_rows,
            place=place,
        )
        return goes


def row_key(row: TextRow, seed: int) -> int:
    """64 bits of the texts and the seed: the order in which rows are drawn."""
    content = "\0".join((str(seed), *row.texts)).encode()
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little")


def _those(rows: Iterator[RawRow | BadRow], goes: np.ndarray, number: int) -> Iterator[RawRow | BadRow]:
    for row, where in zip(rows, goes, strict=True):
        if where == number:
            yield row

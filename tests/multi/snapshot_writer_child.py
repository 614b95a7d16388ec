"""Writers of snapshots that are killed: see test_snapshot_kills.py.

``loop ROOT LIFE`` writes one snapshot after another, with a second process beside it, until it is killed; it prints
``begin NUMBER`` and ``done NUMBER`` with the hashes of all there are. ``points ROOT`` writes one snapshot in ROOT/0,
ROOT/1 … and dies in ROOT/k before the k-th thing that it does to a file.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np

from distill_dist.curriculum.scores import given
from distill_dist.curriculum.snapshot import Snapshot, list_snapshots
from distill_dist.curriculum.snapshot_record import Origin, entries_of, entries_table
from distill_dist.curriculum.snapshot_writer import SnapshotWriter

NUM_BLOCKS = 4
KEEP = 2
PINNED = "snapshot-00001"
NUMBERS = (1, 2, 3, 3, 4, 2)  # in turns: new ones, the same again, one of the past again
EVENTS = {"open", "os.rename", "os.mkdir", "os.rmdir", "os.remove", "os.truncate", "shutil.rmtree"}


def write(root: Path, number: int, step: int, *, rows: int, beside: bool = False) -> None:
    """A snapshot whose scores are all ``step``; ``beside``: a second process writes every other block."""
    writer = SnapshotWriter(root, number)
    writer.begin()
    columns = given(np.full(rows, step))

    def table(blocks: range) -> np.ndarray:
        return entries_table([writer.write_block(index, columns) for index in blocks], NUM_BLOCKS)

    if beside:
        receive, send = os.pipe()
        helper = os.fork()
        if helper == 0:
            os.write(send, table(range(1, NUM_BLOCKS, 2)).tobytes())
            os._exit(0)
        os.close(send)
        own = table(range(0, NUM_BLOCKS, 2))
        with os.fdopen(receive, "rb") as pipe:
            entries = entries_of(own + np.frombuffer(pipe.read(), np.int64).reshape(own.shape))
        assert os.waitpid(helper, 0)[1] == 0
    else:
        entries = entries_of(table(range(NUM_BLOCKS)))
    origin = Origin(step=step, measure="margin", smoothing=0.5, manifest="", parent="")
    writer.commit(entries, origin, keep=KEEP, in_use=frozenset({PINNED}))


def hashes(root: Path) -> dict[str, str]:
    """Name -> hash of the snapshots in ``root``."""
    return {folder.name: Snapshot.open(folder).hash for folder in list_snapshots(root)}


def loop(root: Path, life: int) -> None:
    """Until killed."""
    for turn in itertools.count():
        number = NUMBERS[turn % len(NUMBERS)]
        print("begin", number, flush=True)
        write(root, number, 10_000 * life + turn, rows=20_000, beside=True)
        print("done", number, json.dumps(hashes(root)), flush=True)


def points(root: Path) -> None:
    """One folder for every place to die in, until the writer lives through."""
    start = root / "start"
    for number in (1, 2, 3, 4):
        write(start, number, number, rows=3)
    (start / ".snapshot-00004.tmp").mkdir()  # and what others left, which is removed meanwhile
    (start / ".snapshot-00004.tmp" / "shard-000000.bin").write_bytes(b"half")
    shutil.copytree(start / "snapshot-00003", start / ".snapshot-00003.old")
    for point in itertools.count():
        here = root / str(point)
        shutil.copytree(start, here)
        if (child := os.fork()) == 0:
            _die_at(point)
            write(here, 4, 100, rows=3)
            os._exit(0)
        if os.waitpid(child, 0)[1] == 0:
            return


def _die_at(point: int) -> None:
    seen = itertools.count()

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event in EVENTS and next(seen) == point:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


if __name__ == "__main__":
    if sys.argv[1] == "loop":
        loop(Path(sys.argv[2]), int(sys.argv[3]))
    else:
        points(Path(sys.argv[2]))

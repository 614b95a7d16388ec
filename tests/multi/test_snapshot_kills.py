"""Writers of snapshots killed at any moment leave the old snapshot or the new one, and trip no later writer.

DISTILL_KILLS: how many are killed at random moments. What a killed process wrote stays in the page cache; that it is
on the disk in time, for a machine that dies, is for the order of fsync and rename: test_snapshot.py.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from distill_dist.curriculum.snapshot import Snapshot, list_snapshots
from distill_dist.curriculum.snapshot_writer import tidy
from multi.snapshot_writer_child import KEEP, NUMBERS, PINNED, hashes, write

KILLS = int(os.environ.get("DISTILL_KILLS", "15"))
CHILD = Path(__file__).with_name("snapshot_writer_child.py")

pytestmark = pytest.mark.timeout(60 + 4 * KILLS)


def verified(root: Path) -> dict[str, str]:
    """The hashes of the snapshots in ``root``, every one whole."""
    for folder in list_snapshots(root):
        Snapshot.open(folder).verify()
    return hashes(root)


def hidden(root: Path) -> list[str]:
    return [path.name for path in root.iterdir() if path.name.startswith(".")]


def kill_one(root: Path, life: int, wait_s: float) -> tuple[list[tuple[str, dict[str, str]]], str | None]:
    """What a writer, killed ``wait_s`` after it finished its first turns, had done; what it was at, if anything."""
    command = [sys.executable, str(CHILD), "loop", str(root), str(life)]
    # a session of its own, so that its helper dies with it
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as child:
        assert child.stdout is not None
        lines = [child.stdout.readline() for _ in range(2)]
        time.sleep(wait_s)
        os.killpg(child.pid, signal.SIGKILL)
        lines += child.stdout.read().splitlines()
    assert child.returncode == -signal.SIGKILL, lines
    done, begun = [], None
    for line in lines:
        assert line.startswith(("begin ", "done ")), lines
        word, number, *rest = line.split(maxsplit=2)
        name = f"snapshot-{int(number):05d}"
        begun = name if word == "begin" else None
        if word == "done":
            done.append((name, json.loads(rest[0])))
    return done, begun


def check(found: dict[str, str], before: dict[str, str], begun: str | None) -> None:
    """``found`` is what was there, except that the snapshot being written may be there instead or besides."""
    may_differ = {begun} if begun else set()
    assert {name: found[name] for name in found.keys() - may_differ} == {
        name: before[name] for name in found.keys() - may_differ
    }
    assert PINNED in found
    if begun in before:
        assert begun in found
    pruned = before.keys() - found.keys()
    if pruned:  # only by a commit that was through, and never the newest
        assert begun in found
        assert found[begun] != before.get(begun)
        assert not pruned & set(sorted(name for name in before | found if name <= begun)[-KEEP:])


def test_writers_killed_at_random_moments(tmp_path: Path) -> None:
    root, chance, in_the_act = tmp_path / "snapshots", random.Random(0), 0
    for life in range(KILLS):
        done, begun = kill_one(root, life, chance.uniform(0, 0.15))
        name, before = done[-1]
        assert before[name], "the child reported what it had just written"
        in_the_act += bool(hidden(root))
        for folder in list_snapshots(root):  # what is seen is whole, tidied up or not
            Snapshot.open(folder).verify()
        if life % 2:  # else the next child finds what this one left
            tidy(root)
            check(verified(root), before, begun)
            assert hidden(root) == []
    assert in_the_act >= KILLS // 10, "the moments were not those of a writer at work"
    write(root, NUMBERS[0], 1, rows=10)
    verified(root)
    assert hidden(root) == []


def test_a_writer_killed_before_each_thing_that_it_does_to_a_file(tmp_path: Path) -> None:
    subprocess.run([sys.executable, str(CHILD), "points", str(tmp_path)], check=True, timeout=60)
    start = verified(tmp_path / "start")
    ends = sorted(
        (path for path in tmp_path.iterdir() if path.name != "start"), key=lambda path: int(path.name)
    )
    lived = ends.pop()
    after = verified(lived)
    new = after["snapshot-00004"]
    assert new != start["snapshot-00004"]
    assert sorted(after) == ["snapshot-00001", "snapshot-00003", "snapshot-00004"]
    assert hidden(lived) == []
    aside, is_new, left = [], [], []
    for root in ends:
        aside.append("snapshot-00004" not in verified(root))
        left.append(bool(hidden(root)))
        tidy(root)
        found = verified(root)
        check(found, start, "snapshot-00004")
        is_new.append(found["snapshot-00004"] == new)
        write(root, 4, 100, rows=3)
        assert verified(root) == after
        assert hidden(root) == []
    assert is_new == sorted(is_new), "once the new one is there it stays"
    assert {True, False} <= set(is_new)
    assert sum(aside) == 1  # the one moment between the two moves
    assert sum(left) > 10

"""kill -9 at any moment of a run with a curriculum: the same samples in the same order, and nothing left behind.

DISTILL_KILLS: how many in all, a quarter of them of real runs of two students, the others of a process that does
everything but train a network (curriculum_sampler_child.py). `make crash` takes 200.
"""

from __future__ import annotations

import os
import random
import shutil
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import RUN_LIMIT_S, Started, World, prepare_corpus, running, start_deepspeed, start_ranks, trace

from distill_dist.curriculum.snapshot import Snapshot, list_snapshots
from e2e.conftest import shared_memory
from e2e.curriculum_sampler import PHASES, Sampler
from e2e.test_interrupted import assert_same_run

KILLS = int(os.environ.get("DISTILL_KILLS", "0"))
RUN_KILLS = -(-KILLS // 4) or 3
CHILD_KILLS = KILLS - RUN_KILLS if KILLS else 16
SHARD = "data.rows_per_shard=50"  # of 400 rows: a scoring pass has eight files to write
KILLED_MODES = ("pass", "served", "windows")
# what a run is at -> seconds, at most, between its beginning and the kill
LATE_S = {"scoring": 0.4, "commit": 0.02, "planning": 0.05, "batches": 0.3, "checkpoint": 0.02}


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny corpus in eight shards."""
    return prepare_corpus(tmp_path_factory.mktemp("shards"), SHARD)


def hidden(run_dir: Path) -> list[str]:
    """Names with a dot in a run's folder: what was being written; its lock stays."""
    return sorted(path.name for path in run_dir.rglob(".*") if path.name not in (".lock", ".mark"))


def assert_what_is_seen_is_whole(run_dir: Path) -> None:
    """Whatever has a name without a dot can be read."""
    for folder in list_snapshots(run_dir / "snapshots"):
        Snapshot.open(folder).verify()
    for path in run_dir.glob("plans/plan-*.npz"):
        with np.load(path, allow_pickle=False) as arrays:
            assert len(arrays["counts"]) == 8
    if (run_dir / "snapshots").is_dir():
        listed = {folder.name for folder in list_snapshots(run_dir / "snapshots")}
        assert {path.name for path in (run_dir / "snapshots").glob("[!.]*")} == listed


def snapshot_hashes(run_dir: Path) -> dict[str, str]:
    """Name -> hash of everything in it."""
    return {folder.name: Snapshot.open(folder).hash for folder in list_snapshots(run_dir / "snapshots")}


def abandoned_memory(before: set[str]) -> set[str]:
    """New names in /dev/shm that no living process has open: other people's runs come and go."""
    new = shared_memory() - before
    if not new:
        return set()
    used = set()
    for maps in Path("/proc").glob("[0-9]*/maps"):
        try:
            text = maps.read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue  # ended, or not ours to read
        used |= {name for name in new if f"/dev/shm/{name}\n" in text}
    return (new - used) & shared_memory()


# ------------------------------------------------------------------ real runs


@dataclass
class Killed:
    """A run that is killed again and again; ``reference`` ran undisturbed."""

    arguments: Callable[[Path], list[str]]
    folder: Path
    reference: Path
    chance: random.Random = field(default_factory=lambda: random.Random(0))
    moments: Counter[str] = field(default_factory=Counter)
    starts: int = 0

    def go(self, kills: int) -> None:
        """Kill at so many moments, in as many runs as it takes; every one ends as the reference."""
        number = 0
        while self.moments.total() < kills:
            run_dir = self.folder / f"run-{number}"
            while self.moments.total() < kills and self._life(run_dir, kill=True):
                pass
            if self.moments.total() == kills:
                while self._life(run_dir, kill=False):
                    raise AssertionError("nobody killed it")
            assert_same_run(run_dir, self.reference)
            assert snapshot_hashes(run_dir) == snapshot_hashes(self.reference)
            assert hidden(run_dir) == []
            number += 1

    def _life(self, run_dir: Path, *, kill: bool) -> bool:
        """Start, and kill where ``kill`` says so; whether it was killed before its end."""
        before = shared_memory()
        # the launcher every fifth time: it is another process whose imports take as long as a rank's
        start = start_deepspeed if self.starts % 5 == 0 else start_ranks
        self.starts += 1
        logs = run_dir.with_name(f"{run_dir.name}-logs-{self.starts}")
        killed = False
        with running(start(self.arguments(run_dir), size=2, logs=logs)) as started:
            if kill and self._wait_for_moment(started, run_dir):
                at = self._doing(run_dir)
                killed = any(process.poll() is None for process in started.processes)
                started.kill()
            if not killed:
                assert set(started.wait()) == {0}, started.text()
        if killed:
            self.moments[at] += 1
            assert_what_is_seen_is_whole(run_dir)
            for student in (0, 1):
                done = trace(run_dir, student)
                assert done == trace(self.reference, student)[: len(done)]
        assert abandoned_memory(before) == set()
        return killed

    def _wait_for_moment(self, started: Started, run_dir: Path) -> bool:
        """Return some time after the run has begun to do what is next in turn; False where it ended before."""
        wanted = list(LATE_S)[self.starts % len(LATE_S)]
        steps, later = self.chance.randint(1, 30), self.chance.uniform(0, LATE_S[wanted])
        begin = len(trace(run_dir))
        seen = set(snapshot_names(run_dir))
        conditions: dict[str, Callable[[], bool]] = {
            "scoring": lambda: any(run_dir.glob("snapshots/.snapshot-*.tmp/shard-*")),
            "commit": lambda: any(run_dir.glob("snapshots/.snapshot-*.tmp/shard-000007.bin")),
            "planning": lambda: bool(set(snapshot_names(run_dir)) - seen),
            "batches": lambda: len(trace(run_dir)) >= begin + steps,
            "checkpoint": lambda: any(run_dir.glob("checkpoints/.step-*.tmp")),
        }
        log, size = run_dir / "logs" / "rank-00000.log", log_size(run_dir)
        deadline = time.monotonic() + RUN_LIMIT_S
        moved = False
        while not moved or not conditions[wanted]():
            if all(process.poll() is not None for process in started.processes):
                return False
            assert time.monotonic() < deadline, f"no {wanted}\n{started.text()}"
            moved = moved or (log.exists() and b": 2 student(s)" in log.read_bytes()[size:])
            time.sleep(0.002)
        time.sleep(later)
        return True

    def _doing(self, run_dir: Path) -> str:
        """What it is at, by the files that are being written."""
        names = hidden(run_dir)
        if any(name.startswith(".snapshot-") for name in names):
            return "commit" if any(run_dir.glob("snapshots/.*/snapshot.json")) else "scoring"
        if any(name.startswith(".plan-") for name in names):
            return "planning"
        if any(name.startswith(".step-") for name in names):
            return "checkpoint"
        return "batches and planning"


def snapshot_names(run_dir: Path) -> list[str]:
    return [folder.name for folder in list_snapshots(run_dir / "snapshots")]


def log_size(run_dir: Path) -> int:
    log = run_dir / "logs" / "rank-00000.log"
    return log.stat().st_size if log.exists() else 0


@pytest.mark.timeout(600 + 120 * RUN_KILLS)
def test_real_runs_killed_at_random_moments(world: World, shards: Path, tmp_path: Path) -> None:
    """KD-CL-SR with dropout and embeddings that are trained: two students under DeepSpeed, four epochs."""

    def arguments(run_dir: Path) -> list[str]:
        return world.student(
            run_dir, "method=kd", f"data.prepared={shards}", SHARD, "student.dropout=0.1",
            "student.freeze_embeddings=false", "curriculum.order=easy_to_hard", "reliance.rule=gate",
            "curriculum.keep_snapshots=2", "curriculum.final_snapshot=true", "train.epochs=4", "train.trace=true",
            "train.checkpoint_every=10", "evaluate.saliency=false",
        )  # fmt: skip

    reference = tmp_path / "reference"
    with running(start_ranks(arguments(reference), size=2, logs=tmp_path / "logs")) as ranks:
        assert ranks.wait() == [0, 0], ranks.text()
    assert list(snapshot_hashes(reference)) == ["snapshot-00003", "snapshot-00004"]
    killed = Killed(arguments, tmp_path, reference)
    killed.go(RUN_KILLS)
    print(f"{RUN_KILLS} kills of {killed.starts} starts: {dict(killed.moments)}")
    if RUN_KILLS >= 50:
        assert killed.moments["scoring"] + killed.moments["commit"] >= RUN_KILLS // 10, killed.moments


# ------------------------------------------------------------------ the sampler and its snapshots


@pytest.mark.timeout(120 + 5 * CHILD_KILLS)
def test_samplers_killed_at_random_moments(shards: Path, tmp_path: Path) -> None:
    chance, moments = random.Random(1), Counter[str]()
    with Sampler(shards) as sampler:
        references: dict[str, Any] = {}
        for mode in KILLED_MODES:
            assert sampler.run(tmp_path / mode, mode) == 0
            references[mode] = result(tmp_path / mode)
        assert references["pass"]["trace"] != references["served"]["trace"] != references["windows"]["trace"]
        number = 0
        while moments.total() < CHILD_KILLS:
            mode, run_dir = KILLED_MODES[number % len(KILLED_MODES)], tmp_path / f"killed-{number}"
            for _ in range(chance.randint(1, 12)):  # lives of one run, before it may end
                if moments.total() == CHILD_KILLS:
                    break
                wanted = chance.choice(PHASES)
                later = chance.uniform(0, 0.02 if wanted in ("scoring", "commit") else 0.2)
                phase = sampler.kill(run_dir, mode, wanted=wanted, later_s=later)
                if phase is None:
                    break
                moments[phase] += 1
                assert_what_is_seen_is_whole(run_dir)
                done = trace(run_dir)
                assert done == references[mode]["trace"][: len(done)]
            assert sampler.run(run_dir, mode) == 0
            assert result(run_dir) == references[mode]
            assert hidden(run_dir) == []
            number += 1
    print(f"{CHILD_KILLS} kills of samplers in {number} runs: {dict(moments)}")
    if CHILD_KILLS >= 100:
        assert all(moments[phase] >= 5 for phase in PHASES), moments


def result(run_dir: Path) -> dict[str, Any]:
    """What a run came to."""
    steps = trace(run_dir)
    assert [line["step"] for line in steps] == list(range(len(steps)))
    return {"trace": steps, "snapshots": snapshot_hashes(run_dir)}


def test_what_a_crash_kept_from_being_pruned_goes_with_the_next_start(shards: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    with Sampler(shards) as sampler:
        assert sampler.run(run_dir, "pass") == 0
        expected = result(run_dir)
        assert list(expected["snapshots"]) == ["snapshot-00003", "snapshot-00004"]
        # the commit of number 4 was through, its pruning was not
        shutil.copytree(run_dir / "snapshots" / "snapshot-00003", run_dir / "snapshots" / "snapshot-00002")
        (run_dir / "plans" / ".plan-00003.npz.999999999.tmp").touch()
        (run_dir / "snapshots" / ".snapshot-00002.0123abcd.gone").mkdir()
        shutil.rmtree(run_dir / "checkpoints" / "step-00000200")
        assert sampler.run(run_dir, "pass") == 0
        assert result(run_dir) == expected
        assert hidden(run_dir) == []
        # in its last moments: there is no epoch left to open
        (run_dir / "snapshots" / ".snapshot-00002.0123abcd.gone").mkdir()
        assert sampler.run(run_dir, "pass") == 0
    assert result(run_dir) == expected
    assert hidden(run_dir) == []

"""kill -9 of any rank at any moment, and the same command again, as a scheduler would: the same final weights.

DISTILL_KILLS: a quarter of them are these (`make crash`: 50). Without it this file is left out (conftest.py): the
death of each rank, once, is in test_interrupted.py.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest
from tiny import (
    ENDS_WITHIN_S,
    RUN_LIMIT_S,
    Started,
    World,
    kill_rank,
    port_is_free,
    running,
    start_deepspeed,
    start_ranks,
    state,
    trace,
    wait_until,
)

from distill_dist import checkpoint
from e2e.conftest import SlowDisk, shared_memory
from e2e.test_curriculum_killed import abandoned_memory
from e2e.test_interrupted import arguments_of, assert_same_run, newest_checkpoint

KILLS = -(-int(os.environ.get("DISTILL_KILLS", "0")) // 4)
RANKS, TEACHER = 3, 2
EPOCHS = 8  # of 50 steps; between two kills some ten of them last
WRITE_S = 0.3  # of a checkpoint: several steps, so that many kills come in the middle of one
KILL_WAIT_S = 5.0  # between a scheduler's SIGTERM to what is left and its SIGKILL; Slurm's is 30
MOMENTS = ("starting", "training", "saving")


@dataclass
class Scheduler:
    """Starts the same command again and again, and kills a rank of it; ``reference`` ran undisturbed."""

    arguments: list[str]
    run_dir: Path
    reference: Path
    disk: SlowDisk
    chance: random.Random
    done: Counter[str]
    life: int = 0
    start_s: float = 10.0  # from the start to the first step, in the last life that got there

    def live(self, *, kill: bool) -> bool:
        """One life of the run, to its end or to a kill; whether it was killed."""
        before, self.life = shared_memory(), self.life + 1
        # the launcher every fifth time: it acts on a death by itself
        launched = self.life % 5 == 0
        logs = self.run_dir.with_name(f"{self.run_dir.name}-logs-{self.life}")
        if launched:
            started = start_deepspeed(self.arguments, size=RANKS, logs=logs)
        else:
            started = start_ranks(self.arguments, size=RANKS, logs=logs, **self.disk.variables)
        with running(started):
            killed = kill and self._kill(started, launched=launched)
            if not killed:
                assert set(started.wait()) == {0}, started.text()
        assert port_is_free(started.port)
        assert abandoned_memory(before) == set()
        if killed:
            self._look()
        return killed

    def _kill(self, started: Started, *, launched: bool) -> bool:
        """Kill one rank at a moment of chance, and end the others; False where the run was done before."""
        moment, victim = self.chance.choice(MOMENTS[launched:]), self.chance.randrange(RANKS)
        if not self._await(moment, started):
            return False
        half = any(self.run_dir.glob("checkpoints/.step-*.tmp"))
        if launched:
            kill_rank(started, victim)
        else:
            started.processes[victim].kill()
        how = self._end(started, launched=launched, alone=moment != "starting" and self.chance.random() < 0.5)
        name = "the teacher" if victim == TEACHER else f"student {victim}"
        self.done.update([name, moment, how, *(["in the middle of a write"] if half else [])])
        print(
            f"{self.run_dir.name}, life {self.life}: {name} killed while {moment}, {len(trace(self.run_dir))} steps "
            f"done{', in the middle of a write' if half else ''}; {how}",
            flush=True,
        )
        return True

    def _await(self, moment: str, started: Started) -> bool:
        """Return when it has come; False where the run ended before."""

        def over() -> bool:
            return any(process.poll() is not None for process in started.processes)

        if moment == "starting":
            time.sleep(self.chance.uniform(0, 1.2 * self.start_s))
            return not over()
        path, begin = self.run_dir / "trace-00000.jsonl", time.monotonic()
        before = _inode(path)
        # who begins to train cuts the file to where it begins, which makes another file of it
        wait_until(lambda: over() or _inode(path) != before, what="training", timeout_s=RUN_LIMIT_S)
        self.start_s, first = time.monotonic() - begin, len(trace(self.run_dir))
        steps = self.chance.randint(1, 25)

        def has_come() -> bool:
            if moment == "saving":
                return any(self.run_dir.glob("checkpoints/.step-*.tmp"))
            return len(trace(self.run_dir)) >= first + steps

        wait_until(lambda: over() or has_come(), what=moment, timeout_s=RUN_LIMIT_S)
        time.sleep(self.chance.uniform(0, WRITE_S))
        return not over()

    def _end(self, started: Started, *, launched: bool, alone: bool) -> str:
        """What becomes of those that were not killed; in words."""
        if launched or alone:
            # ``alone``: nobody tells them, they must see it by themselves
            limit_s = RUN_LIMIT_S if launched else ENDS_WITHIN_S
            wait_until(lambda: not started.alive(), what="all to end", timeout_s=limit_s, every_s=0.1)
            codes = {process.wait(ENDS_WITHIN_S) for process in started.processes}
            assert launched or codes <= {-signal.SIGKILL, 0, 75}, started.text()
            return "the launcher ended the others" if launched else "the others ended by themselves"
        for process in started.processes:
            process.terminate()
        deadline = time.monotonic() + KILL_WAIT_S
        while started.alive() and time.monotonic() < deadline:
            time.sleep(0.05)
        killed = bool(started.alive())
        started.kill()
        return f"the others were told to end{', and killed' if killed else ''}"

    def _look(self) -> None:
        """What is seen is whole, and part of the undisturbed run."""
        complete = checkpoint.complete_folders(self.run_dir / "checkpoints")
        found = checkpoint.newest(self.run_dir / "checkpoints")
        assert (None if found is None else found.folder) == (complete[-1] if complete else None), "damaged"
        for student in range(TEACHER):
            done = trace(self.run_dir, student)
            assert done == trace(self.reference, student)[: len(done)]
        if (self.run_dir / "state.json").exists():
            # a kill that was meant for the start may come when all is done and the processes are about to end
            is_over = len(trace(self.run_dir)) == 50 * EPOCHS
            assert state(self.run_dir)["state"] in ("running", "stopped", *(["done"] if is_over else []))


def _inode(path: Path) -> int | None:
    return path.stat().st_ino if path.exists() else None


@pytest.mark.timeout(1800 + 300 * KILLS)
def test_a_run_that_loses_a_rank_again_and_again_ends_as_the_undisturbed_one(
    world: World, tmp_path: Path
) -> None:
    epochs, reference = f"train.epochs={EPOCHS}", tmp_path / "undisturbed"
    alone = arguments_of(world, reference, epochs, "cluster.teachers=0")
    with running(start_ranks(alone, size=TEACHER, logs=tmp_path / "logs-undisturbed")) as ranks:
        assert ranks.wait(4 * RUN_LIMIT_S) == [0] * TEACHER, ranks.text()
    disk, chance, done = SlowDisk(tmp_path / "disk"), random.Random(0), Counter[str]()
    disk.take(WRITE_S)
    number = lives = 0

    def kills() -> int:
        return sum(done[moment] for moment in MOMENTS)

    while kills() < KILLS:
        number += 1
        run_dir = tmp_path / f"run-{number}"
        scheduler = Scheduler(
            arguments_of(world, run_dir, epochs, "teacher.patience_s=5"),
            run_dir,
            reference,
            disk,
            chance,
            done,
        )
        while scheduler.live(kill=kills() < KILLS):
            pass
        lives += scheduler.life
        assert_same_run(run_dir, reference)
        assert newest_checkpoint(run_dir)[0] == 50 * EPOCHS
        assert state(run_dir)["state"] == "done"
        assert list((run_dir / "checkpoints").glob(".*")) == []
    print(f"{kills()} kills in {lives} lives of {number} run(s): {dict(done)}")
    if KILLS >= 50:
        assert all(done[name] >= 8 for name in ("student 0", "student 1", "the teacher", *MOMENTS)), done
        assert done["in the middle of a write"] >= 8, done

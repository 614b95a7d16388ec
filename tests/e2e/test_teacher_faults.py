"""Teachers that die, hang, lose memory, cache and disk while a run goes on: the same samples, the same weights.

DISTILL_FAULTS: how many faults (`make faults`); the kinds take turns. Without it one of each, in a run of 100 steps.
"""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from small_disk import small_disk
from tiny import Started, World, environment, launch, port_is_free, running, start_ranks, state, wait_until

from e2e.conftest import Reference, shared_memory
from e2e.harmed_teachers import HEALS_WITHIN_S, Cache, Teachers
from e2e.test_interrupted import arguments_of, assert_same_run, await_step
from e2e.test_teacher_cache import counters_in

FAULTS = int(os.environ.get("DISTILL_FAULTS", "0"))
STUDENTS, TEACHERS = 2, 3
EVERY = range(TEACHERS)
EPOCH = 50
LEAK = Path(__file__).parent / "memory_leak"
NO_MEMORY = r"can't allocate memory|MemoryError|bad_alloc|could not create a primitive"
pytestmark = pytest.mark.timeout(900 + 90 * FAULTS)


@dataclass(frozen=True)
class Scene:
    """Where a fault happens: in which round of kinds, to which teacher."""

    teachers: Teachers
    cache: Cache
    round: int

    @property
    def victim(self) -> int:
        """A teacher, another one every round."""
        return self.round % TEACHERS

    @property
    def others(self) -> list[int]:
        """The rest of them."""
        return [teacher for teacher in EVERY if teacher != self.victim]

    @property
    def is_odd(self) -> bool:
        """Every other round the same kind comes at another moment, or not alone."""
        return self.round % 2 == 1


# ------------------------------------------------------------------ the kinds: each returns when it has shown


def corrupt_cache(scene: Scene) -> None:
    pattern = "has damaged signals, which are computed again"
    before = [scene.teachers.said(pattern, teacher, "host") for teacher in EVERY]
    scene.cache.damage(bit=scene.round % 8)
    for teacher in EVERY:
        scene.teachers.await_said(pattern, teacher, "host", more_than=before[teacher])


def fill_disk(scene: Scene) -> None:
    """From here on nothing new is kept, and what was is damaged: every step needs every teacher."""
    pattern = "no more signals are written to .*No space left on device"
    before = [scene.teachers.said(pattern, teacher, "host") for teacher in EVERY]
    scene.cache.fill_disk()
    for teacher in EVERY:
        scene.teachers.await_said(pattern, teacher, "host", more_than=before[teacher])


def kill_worker(scene: Scene) -> None:
    """In odd rounds another one's stops at the same time."""
    teachers = scene.teachers
    before, stopped = teachers.said("worker lost", scene.victim, "host"), teachers.worker(scene.others[0])
    if scene.is_odd:
        teachers.hit([stopped], signal.SIGSTOP)
    teachers.hit([teachers.worker(scene.victim)], signal.SIGKILL)
    teachers.await_said("worker lost", scene.victim, "host", more_than=before)
    if scene.is_odd:
        await_end(stopped)


def stop_worker(scene: Scene) -> None:
    stopped = scene.teachers.worker(scene.victim)
    scene.teachers.hit([stopped], signal.SIGSTOP)
    await_end(stopped)


def await_end(stopped: psutil.Process | None) -> None:
    """Its host has to notice, and to kill it."""
    assert stopped is not None
    wait_until(lambda: not stopped.is_running(), what="what was stopped to go", timeout_s=HEALS_WITHIN_S)


def take_memory(scene: Scene) -> None:
    """Even rounds give it back at once: fewer rows will do; else not even one row fits, and another worker must."""
    teachers, worker = scene.teachers, scene.teachers.worker(scene.victim)

    def signs() -> int:
        return teachers.said(NO_MEMORY, scene.victim, "worker") + teachers.said(
            "worker lost", scene.victim, "host"
        )

    before, lost = signs(), teachers.said("worker lost", scene.victim, "host")
    teachers.hit([worker], signal.SIGUSR2)
    wait_until(lambda: signs() > before, what="memory to run out", timeout_s=HEALS_WITHIN_S)
    if scene.is_odd:
        teachers.await_said("worker lost", scene.victim, "host", more_than=lost)
    else:
        with suppress(psutil.NoSuchProcess):
            teachers.hit([worker], signal.SIGUSR2)


def kill_host(scene: Scene) -> None:
    scene.teachers.kill_hosts([scene.victim])


def stop_host(scene: Scene) -> None:
    before = scene.teachers.said("its host was silent", scene.victim)
    scene.teachers.hit([scene.teachers.host(scene.victim)], signal.SIGSTOP)
    scene.teachers.await_said("its host was silent", scene.victim, more_than=before)


def replace_host(scene: Scene) -> None:
    """The next one is in a later world; odd rounds kill it, too, on its way there, even ones another of that world."""
    teachers, old, generation = scene.teachers, scene.teachers.host(scene.victim), scene.teachers.generation()
    teachers.kill_hosts([scene.victim])
    if scene.round:
        teachers.await_loaded([scene.victim])
        time.sleep(0.1 * scene.round)  # the world is formed in some tenths of a second
        teachers.kill_hosts([scene.victim if scene.is_odd else scene.others[0]])
    teachers.heal()
    new = teachers.host(scene.victim)
    assert old is not None
    assert new is not None
    assert new.pid != old.pid
    assert teachers.generation() > generation


def kill_two_hosts(scene: Scene) -> None:
    """The one that was replaced before answers everything: steps go on before the others are there again."""
    loaded = [scene.teachers.said("has loaded", teacher, "host") for teacher in scene.others]
    scene.teachers.kill_hosts(scene.others)
    begin = scene.teachers.steps()
    # two steps may have their signals already, a third may be under way
    wait_until(lambda: scene.teachers.steps() > begin + 3, what="four steps", timeout_s=HEALS_WITHIN_S)
    assert loaded == [scene.teachers.said("has loaded", teacher, "host") for teacher in scene.others]


def kill_all_hosts(scene: Scene) -> None:
    scene.teachers.kill_hosts(EVERY)


KINDS: dict[str, Callable[[Scene], None]] = {
    "cache corrupted": corrupt_cache,
    "disk full": fill_disk,
    "worker killed": kill_worker,
    "host killed": kill_host,
    "out of memory": take_memory,
    "host replaced": replace_host,
    "two hosts killed": kill_two_hosts,
    "worker stopped": stop_worker,
    "host stopped": stop_host,
    "all hosts killed": kill_all_hosts,
}


# ------------------------------------------------------------------ the run


def harm(teachers: Teachers, cache: Cache, number: int, steps: int) -> Counter[str]:
    """``number`` faults over ``steps`` steps, each after the one before is healed; how many of each kind."""
    done: Counter[str] = Counter()
    names, began = list(KINDS), time.monotonic()
    for fault in range(number):
        kind, scene = names[fault % len(names)], Scene(teachers, cache, fault // len(names))
        step = (fault + 1) * steps // (number + 2)
        if kind == "host killed" and scene.is_odd:  # while dev is scored
            step = min(-(-max(step, teachers.steps() + 1) // EPOCH) * EPOCH, steps - EPOCH)
        await_step(teachers.ranks, teachers.run_dir, step)
        at = teachers.steps()
        assert at < steps, "the run ended before the fault"
        if kind == names[-1] and fault + 1 < number:
            cache.refill()  # for those that come, and have much to lose again
        KINDS[kind](scene)
        teachers.heal()
        done[kind] += 1
        print(
            f"{time.monotonic() - began:6.0f} s, step {at:4d}: {kind} ({fault + 1} of {number})", flush=True
        )
    return done


def undisturbed_run(world: World, reference: Reference, tmp_path: Path, epochs: int) -> Path:
    """The folder of a run of as many epochs that nobody harms."""
    if epochs == 2:
        return reference.run_dir
    run_dir = tmp_path / "undisturbed"
    alone = arguments_of(world, run_dir, f"train.epochs={epochs}", "cluster.teachers=0")
    with running(start_ranks(alone, size=STUDENTS, logs=tmp_path / "logs-undisturbed")) as ranks:
        assert ranks.wait(HEALS_WITHIN_S + FAULTS) == [0] * STUDENTS, ranks.text()
    return run_dir


def filled_segment(world: World, tmp_path: Path) -> Path:
    """Everything that the run asks for."""
    folder = tmp_path / "filled"
    arguments = arguments_of(world, tmp_path / "fill", f"teacher.cache_dir={folder}")
    done = launch("cache_teacher.py", arguments, logs=tmp_path / "logs-fill")
    assert done.processes[0].returncode == 0, done.text()
    (segment,) = folder.glob("*.seg")
    return segment


def test_faults_change_nothing(world: World, reference: Reference, tmp_path: Path) -> None:
    number = FAULTS or len(KINDS)
    epochs = max(2, -(-number * 14 // EPOCH)) if FAULTS else 2
    undisturbed = undisturbed_run(world, reference, tmp_path, epochs)
    filled, run_dir, before = filled_segment(world, tmp_path), tmp_path / "run", shared_memory()
    with small_disk(tmp_path / "cache", "16m", otherwise=pytest.fail) as disk:
        cache = Cache(disk, filled)
        cache.refill()
        more = (
            f"train.epochs={epochs}",
            f"cluster.teachers={TEACHERS}",
            f"teacher.cache_dir={disk}",
            "teacher.cache_mib=0",  # what is on disk is read there, every time
            "teacher.deadline_s=6",
            "teacher.patience_s=300",
            "teacher.prefetch=1",
        )
        ranks = start_ranks(
            arguments_of(world, run_dir, *more),
            size=STUDENTS + TEACHERS,
            logs=tmp_path / "logs",
            PYTHONPATH=os.pathsep.join([str(LEAK), environment()["PYTHONPATH"]]),
        )
        with running(ranks):
            teachers = Teachers(ranks, run_dir, STUDENTS, TEACHERS)
            await_step(ranks, run_dir, 1)
            done = harm(teachers, cache, number, epochs * EPOCH)
            assert ranks.wait(HEALS_WITHIN_S + number) == [0] * (STUDENTS + TEACHERS), ranks.text()
    print(f"{done.total()} faults over {epochs * EPOCH} steps: {dict(done)}")
    assert_same_run(run_dir, undisturbed)
    assert state(run_dir)["state"] == "done"
    assert_all_taught(teachers, done)
    assert_nothing_is_left(ranks, run_dir, before)


def assert_all_taught(teachers: Teachers, done: Counter[str]) -> None:
    """The last host of each answered, what was damaged was computed again, and nothing was raised by accident."""
    counters = []
    for teacher in EVERY:
        counters.append(counters_in(teachers.log(teacher)))
    assert all(each["answered"] > 0 for each in counters), counters
    assert sum(each["computed_rows"] for each in counters) > 0, counters
    assert sum(each["damaged"] for each in counters) > 0, counters
    if done["out of memory"]:
        assert any(teachers.said("can't allocate memory", teacher, "worker") for teacher in EVERY)
    logs = {path.name: path.read_text(encoding="utf-8") for path in (teachers.run_dir / "logs").iterdir()}
    assert [name for name, text in logs.items() if "Traceback" in text] == []


def assert_nothing_is_left(ranks: Started, run_dir: Path, shm_before: set[str]) -> None:
    """No process of the run, whoever started it, none of its sockets, no shared memory."""
    assert ranks.alive() == []
    with_folder = [
        process.info["pid"]
        for process in psutil.process_iter(["pid", "cmdline"])
        if any(str(run_dir) in argument for argument in process.info["cmdline"] or ())
    ]
    assert with_folder == []
    assert shared_memory() <= shm_before
    assert port_is_free(ranks.port)

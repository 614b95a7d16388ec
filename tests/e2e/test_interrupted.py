"""Runs that are killed or told to stop: they end soon, leave nothing, and go on as if nothing had been."""

from __future__ import annotations

import json
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny import (
    ENDS_WITHIN_S,
    RUN_LIMIT_S,
    Started,
    World,
    kill_rank,
    launch,
    port_is_free,
    rank_process,
    running,
    start_deepspeed,
    start_ranks,
    state,
    trace,
    wait_until,
)

from distill_dist import checkpoint
from distill_dist.durable import sha256_file
from e2e.conftest import TRACED, Reference, SlowDisk, shared_memory

# the first test of a session also waits for its fixtures; tests run beside each other
pytestmark = pytest.mark.timeout(600)
TEACHER, PLACES = 2, {0: "student 0", 1: "student 1", 2: "the teacher"}


def arguments_of(world: World, run_dir: Path, *more: str) -> list[str]:
    """The reference's run, in another folder."""
    return world.student(run_dir, "method=gkd_cls", *TRACED, *more)


def await_step(started: Started, run_dir: Path, step: int, student: int = 0) -> None:
    """Return when ``student`` has committed ``step`` steps."""
    wait_until(
        lambda: len(trace(run_dir, student)) >= step or all(p.poll() is not None for p in started.processes),
        what=f"step {step} of {run_dir}",
        timeout_s=RUN_LIMIT_S,
    )
    assert started.alive(), started.text()


def newest_checkpoint(run_dir: Path) -> tuple[int, dict[str, torch.Tensor]]:
    """(its step, its tensors)."""
    folder = max(path.parent for path in (run_dir / "checkpoints").glob("step-*/COMPLETE"))
    progress = json.loads((folder / "progress.json").read_text(encoding="utf-8"))
    return progress["step"], load_file(folder / "tensors.safetensors")


def assert_same_run(run_dir: Path, undisturbed: Path) -> None:
    """Bit-equal final weights and moments, same samples and losses at every step, same figures."""
    step, tensors = newest_checkpoint(run_dir)
    other_step, expected = newest_checkpoint(undisturbed)
    assert (step, tensors.keys()) == (other_step, expected.keys())
    different = [name for name, tensor in tensors.items() if not torch.equal(tensor, expected[name])]
    assert different == []
    for student in (0, 1):
        assert trace(run_dir, student) == trace(undisturbed, student)
    ours, theirs = (json.loads((run / "summary.json").read_text()) for run in (run_dir, undisturbed))
    for summary in (ours, theirs):
        for name in ("wire_report", "row_difference"):  # only where signals travel
            summary["teacher"].pop(name, None)
    for key in ("student", "teacher", "loyalty", "steps", "best_step"):
        assert ours[key] == theirs[key], key
    model, expected_model = (load_file(run / "model" / "model.safetensors") for run in (run_dir, undisturbed))
    assert all(torch.equal(model[name], expected_model[name]) for name in expected_model)


def test_a_teacher_that_was_replaced_since_is_refused(
    world: World, reference: Reference, tmp_path: Path
) -> None:
    """Whoever serves it: one in a process of its own taught before, the students' own is to go on."""
    run_dir = tmp_path / "run"
    shutil.copytree(reference.run_dir, run_dir)
    folder = max(path.parent for path in (run_dir / "checkpoints").glob("step-*/COMPLETE"))
    progress = json.loads((folder / "progress.json").read_text(encoding="utf-8"))
    (taught_by,) = progress["teachers"]
    here, taught_by["fingerprint"] = taught_by["fingerprint"], "0" * 64
    (folder / "progress.json").write_text(json.dumps(progress), encoding="utf-8")
    sums = json.loads((folder / "COMPLETE").read_text(encoding="utf-8"))
    sums["progress.json"] = sha256_file(folder / "progress.json")
    (folder / "COMPLETE").write_text(json.dumps(sums), encoding="utf-8")
    done = launch("train.py", arguments_of(world, run_dir, "cluster.teachers=0"), logs=tmp_path / "logs")
    assert done.processes[0].returncode == 2, done.text()
    assert done.stderr().count("error: ") == 1, done.text()
    assert f"another model (fingerprint {here[:12]} instead of 000000000000" in done.stderr()
    assert "start in another run_dir" in done.stderr()
    assert (state(run_dir)["state"], state(run_dir)["resumable"]) == ("failed", False)


def test_kill_9_of_all_in_the_middle_of_a_write_and_resume(
    world: World, reference: Reference, tmp_path: Path
):
    run_dir, disk = tmp_path / "run", SlowDisk(tmp_path / "disk")
    disk.take(600, from_step=20)
    arguments = arguments_of(world, run_dir)
    with running(start_ranks(arguments, size=3, logs=tmp_path / "logs-1", **disk.variables)) as ranks:
        await_step(ranks, run_dir, 24)  # training goes on meanwhile
        ranks.kill()
    step, killed = newest_checkpoint(run_dir)
    done = len(trace(run_dir))
    assert step == 10
    assert 24 <= done <= 30, "the next one had to wait"
    (half,) = (run_dir / "checkpoints").glob(".step-*")
    assert half.name.startswith(".step-00000020.")
    _, final = newest_checkpoint(reference.run_dir)
    assert any(not torch.equal(killed[name], final[name]) for name in final), "nothing was left to do"
    with running(start_ranks(arguments, size=3, logs=tmp_path / "logs-2")) as ranks:
        assert ranks.wait() == [0, 0, 0], ranks.text()
    log = (run_dir / "logs" / "rank-00000.log").read_text(encoding="utf-8")
    assert f"resumed from {run_dir}/checkpoints/step-{step:08d}" in log
    assert_same_run(run_dir, reference.run_dir)
    assert list((run_dir / "checkpoints").glob(".*")) == []


def test_dropout_is_resumed_too(world: World, tmp_path):
    def finished(run_dir: Path, *, kill_at: int) -> dict[str, torch.Tensor]:
        method = ("method=kd", "student.dropout=0.1", "cluster.teachers=0", "train.trace=true")
        arguments = world.student(
            run_dir, *method, "train.checkpoint_every=10", "train.epochs=1", "evaluate.saliency=false"
        )
        if kill_at:
            with running(start_ranks(arguments, size=1, logs=tmp_path / "logs-killed")) as ranks:
                await_step(ranks, run_dir, kill_at)
                ranks.kill()
            assert newest_checkpoint(run_dir)[0] < 50
        with running(start_ranks(arguments, size=1, logs=tmp_path / f"logs-{kill_at}")) as ranks:
            assert ranks.wait() == [0], ranks.text()
        return newest_checkpoint(run_dir)[1]

    whole, resumed = finished(tmp_path / "whole", kill_at=0), finished(tmp_path / "resumed", kill_at=13)
    assert trace(tmp_path / "whole") == trace(tmp_path / "resumed")
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def die(started: Started, run_dir: Path, *, victim: int, at_step: int) -> None:
    """Kill -9 the rank ``victim`` in mid-run; all must end within the promised time and leave nothing."""
    shm_before = shared_memory()
    await_step(started, run_dir, at_step)
    kill_rank(started, victim)
    died_at = time.monotonic()
    while (left := started.alive()) and time.monotonic() - died_at < ENDS_WITHIN_S:
        time.sleep(0.1)
    assert not left, f"{left} outlived {PLACES[victim]} by {ENDS_WITHIN_S:.0f} s\n{started.text()}"
    # a process counts as gone when its main thread is; its sockets close with its last thread, for which this waits
    assert 0 not in [process.wait(ENDS_WITHIN_S) for process in started.processes]
    assert shared_memory() <= shm_before
    assert port_is_free(started.port)


@pytest.mark.long
@pytest.mark.timeout(900)  # four runs of 15 s and three deaths on two free cores
def test_three_deaths_under_the_launcher_and_the_run_goes_on(world: World, reference: Reference, tmp_path):
    run_dir = tmp_path / "run"
    arguments = arguments_of(world, run_dir)
    for number, (victim, at_step) in enumerate(((TEACHER, 14), (1, 34), (0, 64))):
        with running(start_deepspeed(arguments, size=3, logs=tmp_path / f"logs-{number}")) as started:
            die(started, run_dir, victim=victim, at_step=at_step)
        verdict = state(run_dir)
        assert (verdict["state"], verdict["resumable"]) == ("stopped", True), started.text()
        step, _ = newest_checkpoint(run_dir)
        if victim == TEACHER:
            # the launcher's signal may be heard before the missing answer
            assert "teacher2" in verdict["reason"] or "rank 2 (process" in verdict["reason"], verdict
            assert step == len(trace(run_dir)), "the students did not save where they stopped"
        else:
            assert f"rank {victim} (process" in verdict["reason"], verdict
            # student 0 waits for what it is writing before it leaves; when it is killed, that is lost
            last = len(trace(run_dir, 1 - victim)) // 10 * 10
            assert step == last or (victim == 0 and step == last - 10)
        assert step < 100
    with running(start_deepspeed(arguments, size=3, logs=tmp_path / "logs-last")) as started:
        assert started.wait() == [0], started.text()
    assert state(run_dir)["state"] == "done"
    assert_same_run(run_dir, reference.run_dir)


@pytest.mark.parametrize("victim", [TEACHER, 1, 0], ids=["teacher", "student", "rank 0"])
def test_a_death_without_a_launcher_ends_the_run_as_well(world: World, tmp_path, victim: int):
    run_dir = tmp_path / "run"
    with running(start_ranks(arguments_of(world, run_dir), size=3, logs=tmp_path / "logs")) as ranks:
        die(ranks, run_dir, victim=victim, at_step=14)
    codes = [process.returncode for process in ranks.processes]
    assert codes == [-signal.SIGKILL if rank == victim else 75 for rank in range(3)], ranks.text()
    assert "Traceback" not in ranks.text()
    verdict = state(run_dir)
    assert (verdict["state"], verdict["resumable"]) == ("stopped", True)


def test_signals_stop_all_students_at_the_same_step(world: World, reference: Reference, tmp_path: Path):
    """The second time while a checkpoint is being written, and twice: the stop's own is written after that one."""
    run_dir, disk = tmp_path / "run", SlowDisk(tmp_path / "disk")
    arguments = arguments_of(world, run_dir)
    stopped_at = 0
    told = (
        (TEACHER, signal.SIGUSR1, "by a signal (rank 2) after"),
        (0, signal.SIGTERM, "stopped by a signal after"),
        (1, signal.SIGTERM, "stopped by a signal after"),
    )
    for number, (rank, sent, reason) in enumerate(told):
        in_a_write = number == 1
        disk.take(600 * in_a_write)
        logs = tmp_path / f"logs-{number}"
        with running(start_ranks(arguments, size=3, logs=logs, **disk.variables)) as ranks:
            await_step(ranks, run_dir, stopped_at + 7)
            if in_a_write:
                await_step(ranks, run_dir, held := stopped_at // 10 * 10 + 10)
                await_file(run_dir / "checkpoints", f".step-{held:08d}.*")
            rank_process(ranks, rank).send_signal(sent)
            if in_a_write:
                wait_until(lambda: "got SIGTERM" in ranks.stderr(0), what="the signal", timeout_s=RUN_LIMIT_S)
                rank_process(ranks, rank).send_signal(sent)
                disk.take(0)
            assert ranks.wait() == [75, 75, 75], ranks.text()
        verdict = state(run_dir)
        assert (verdict["state"], verdict["resumable"]) == ("stopped", True)
        assert reason in verdict["reason"]
        traces = [trace(run_dir, student) for student in (0, 1)]
        assert len(traces[0]) == len(traces[1])
        assert stopped_at + 7 <= len(traces[0]) < 100
        stopped_at, _ = newest_checkpoint(run_dir)
        assert stopped_at == len(traces[0])
        assert traces[0] == trace(reference.run_dir)[:stopped_at]
        assert list((run_dir / "checkpoints").glob(".*")) == []
        if in_a_write:
            assert (run_dir / "checkpoints" / f"step-{held:08d}" / "COMPLETE").is_file()
    found = checkpoint.newest(run_dir / "checkpoints")
    assert found is not None
    assert found.progress["step"] == stopped_at


def await_file(folder: Path, pattern: str) -> None:
    """Return when there is one of that name."""
    wait_until(lambda: any(folder.glob(pattern)), what=f"{pattern} in {folder}", timeout_s=RUN_LIMIT_S)

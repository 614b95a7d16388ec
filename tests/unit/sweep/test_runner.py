"""Trials as real processes in real run folders: who starts when, what is tried again, what a dead sweep leaves."""

from __future__ import annotations

import shlex
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from tiny import environment, wait_until

from distill_dist.errors import Interrupted, UserError
from distill_dist.sweep.plan import Plan, Trial, save_plan
from distill_dist.sweep.runner import Runner, _outcome, _Running
from distill_dist.sweep.trial_process import TRAIN, launch_log, ranks_of, start_trial, trial_command
from distill_dist.sweep.verdict import Verdict, read_verdict
from sweep.cases import FAKE, plan_of, starts, write_plan

LIMIT_S = 60.0
pytestmark = pytest.mark.timeout(180)


@pytest.fixture
def plans(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    folder = tmp_path / "plans"
    folder.mkdir()
    for name, value in environment(FAKE_TRIALS=str(folder)).items():
        monkeypatch.setenv(name, value)
    yield folder
    for path in folder.glob("*.starts"):  # a test that failed leaves nothing behind
        for _, process in starts(folder, int(path.stem)):
            if psutil.pid_exists(process) and "fake_trial.py" in " ".join(psutil.Process(process).cmdline()):
                psutil.Process(process).kill()


def planned(folder: Path, *grid: str) -> Plan:
    plan = plan_of(folder / "sweep", *grid)
    save_plan(plan)
    return plan


def run(
    plan: Plan, said: list[str] | None = None, *, parallel: int = 1, restarts: int = 3, retry_failed: bool = False,
    should_stop: Callable[[], bool] = lambda: False, first: int | None = None, **more: Any,
) -> list[Verdict]:  # fmt: skip
    runner = Runner(
        plan.trials[:first], lambda trial, slot: trial_command(FAKE, trial, slot=slot), parallel=parallel,
        restarts=restarts, retry_failed=retry_failed, should_stop=should_stop,
        say=([] if said is None else said).append, stop_within_s=LIMIT_S, **more,
    )  # fmt: skip
    runner.run()
    return verdicts(plan)


def verdicts(plan: Plan) -> list[Verdict]:
    return [read_verdict(trial.folder) for trial in plan.trials]


def computed(plan: Plan) -> list[int]:
    return [verdict.summary["signals"]["computed"] for verdict in verdicts(plan) if verdict.summary]


def test_trials_run_one_after_another_and_one_pays(tmp_path: Path, plans: Path) -> None:
    plan = planned(tmp_path, "seed=0,1,2")
    assert [found.state for found in run(plan)] == ["done"] * 3
    assert computed(plan) == [520, 0, 0]
    assert [len(starts(plans, number)) for number in range(3)] == [1, 1, 1]
    run(plan)
    assert [len(starts(plans, number)) for number in range(3)] == [1, 1, 1], "what is done is not repeated"


def test_what_follows_on_a_trial_starts_after_it_and_a_second_call_follows_too(
    tmp_path: Path, plans: Path
) -> None:
    """Those of lower numbers first; what has ended before is followed without being run again."""
    plan, said, asked = planned(tmp_path, "seed=0,1,2,3"), [], []

    def follow(trial: Trial, verdict: Verdict) -> list[Trial]:
        asked.append((trial.number, verdict.state))
        return {0: [plan.trials[3], plan.trials[1]], 1: [plan.trials[2]]}.get(trial.number, [])

    assert [found.state for found in run(plan, said, first=1, follow=follow, total=4)] == ["done"] * 4
    assert asked == [(number, "done") for number in (0, 1, 2, 3)]
    assert [text.rpartition("(")[2] for text in said if "done" in text] == [
        f"{n} of 4)" for n in (1, 2, 3, 4)
    ]
    asked.clear()
    run(plan, said, first=1, follow=follow, total=4)
    assert sorted(asked) == [(number, "done") for number in (0, 1, 2, 3)]
    assert [len(starts(plans, number)) for number in range(4)] == [1, 1, 1, 1]


def test_who_cannot_follow_lets_those_on_their_way_end(tmp_path: Path, plans: Path) -> None:
    plan = planned(tmp_path, "method=gkd,gkd_cls", "seed=0,1")  # two groups: trials 0 and 2 start together
    write_plan(plans, 0, "failed")
    write_plan(plans, 2, "wait")  # on its way until the other is known to have failed

    def follow(trial: Trial, verdict: Verdict) -> list[Trial]:
        if verdict.state == "failed":
            (plan.trials[2].folder / "go").touch()
            raise UserError(f"{trial.name} is needed")
        return []

    with pytest.raises(UserError, match="is needed"):
        run(plan, parallel=2, follow=follow)
    assert [found.state for found in verdicts(plan)] == ["failed", "waiting", "done", "waiting"]
    with pytest.raises(UserError, match="is needed"):
        run(plan, parallel=2, follow=follow)
    assert [len(starts(plans, number)) for number in range(4)] == [1, 0, 1, 0], "it is followed as it is"


def test_in_parallel_the_first_of_those_that_ask_the_same_goes_ahead(tmp_path: Path, plans: Path) -> None:
    plan = planned(tmp_path, "method=gkd,gkd_cls", "seed=0,1")  # two groups: trials 0, 1 and 2, 3
    for number in (0, 2):
        write_plan(plans, number, "wait")

    def let_go() -> None:
        wait_until(lambda: starts(plans, 0) and starts(plans, 2), what="both that pay", timeout_s=LIMIT_S)
        time.sleep(0.5)  # long enough for the others to start, if they were let
        seen.append([len(starts(plans, number)) for number in range(4)])
        for number in (0, 2):
            (plan.trials[number].folder / "go").touch()

    seen: list[list[int]] = []
    helper = threading.Thread(target=let_go)
    helper.start()
    run(plan, parallel=4)
    helper.join()
    assert seen == [[1, 0, 1, 0]]
    assert [found.state for found in verdicts(plan)] == ["done"] * 4


def test_what_stops_unasked_is_started_again_but_not_for_ever(tmp_path: Path, plans: Path) -> None:
    plan = planned(tmp_path, "seed=0,1")
    write_plan(plans, 0, "interrupted", "dies", "done")
    write_plan(plans, 1, "interrupted")
    with pytest.raises(Interrupted, match="001-seed=1 stopped too often"):
        run(plan, restarts=2)
    assert [found.state for found in verdicts(plan)] == ["done", "stopped"]
    assert [len(starts(plans, number)) for number in range(2)] == [3, 3]
    write_plan(plans, 1, "done")
    assert [found.state for found in run(plan)] == ["done", "done"]


def test_what_failed_is_reported_and_not_repeated_unless_asked(tmp_path: Path, plans: Path) -> None:
    plan = planned(tmp_path, "seed=0,1,2")
    write_plan(plans, 0, "failed", "done")
    write_plan(plans, 1, "early", "done")
    said: list[str] = []
    found = run(plan, said)
    assert [one.state for one in found] == ["failed", "failed", "done"]
    assert found[0].reason == "ValueError: the loss is not finite"
    assert "code 2 before it began: error: there is no GPU" in found[1].reason
    assert str(launch_log(plan.trials[1])) in found[1].reason
    assert any(line.startswith("000-seed=0: failed: ValueError") for line in said)
    run(plan)
    assert [len(starts(plans, number)) for number in range(3)] == [1, 1, 1]
    assert [one.state for one in run(plan, retry_failed=True)] == ["done"] * 3
    assert computed(plan) == [0, 0, 520], "the first that was done paid"


def test_when_all_fail_no_more_are_started(tmp_path: Path, plans: Path) -> None:
    plan = planned(tmp_path, "seed=0,1,2,3,4")
    for number in range(5):
        write_plan(plans, number, "failed")
    with pytest.raises(UserError, match="3 trials failed and none is done"):
        run(plan)
    assert [one.state for one in verdicts(plan)] == ["failed"] * 3 + ["waiting"] * 2


def test_what_runs_beside_those_that_fail_is_left_to_end(tmp_path: Path, plans: Path) -> None:
    plan = planned(tmp_path, "teacher.path=a,b,c,d,e")  # none pays for another
    write_plan(plans, 0, "wait")
    for number in range(1, 5):
        write_plan(plans, number, "failed")
    said: list[str] = []

    def stop() -> bool:
        if sum(": failed: " in line for line in said) == 3:
            (plan.trials[0].folder / "go").touch()
        return False

    with pytest.raises(UserError, match="3 trials failed and none is done"):
        run(plan, said, parallel=2, should_stop=stop)
    assert [one.state for one in verdicts(plan)] == ["done", "failed", "failed", "failed", "waiting"]


def test_a_stop_is_passed_on_and_the_next_call_goes_on(tmp_path: Path, plans: Path) -> None:
    plan = planned(tmp_path, "seed=0,1,2")
    write_plan(plans, 1, "wait", "done")
    with pytest.raises(Interrupted, match="asked to"):
        run(plan, should_stop=lambda: (plan.trials[1].folder / "state.json").exists())
    found = verdicts(plan)
    assert [one.state for one in found] == ["done", "stopped", "waiting"]
    assert found[1].reason == "asked to stop at step 3"
    assert not any(ranks_of(trial) for trial in plan.trials)
    assert [one.state for one in run(plan)] == ["done"] * 3
    assert [len(starts(plans, number)) for number in range(3)] == [1, 2, 1]


def test_a_stop_that_comes_when_all_is_done_changes_nothing(tmp_path: Path, plans: Path) -> None:
    plan = planned(tmp_path, "seed=0")
    found = run(plan, should_stop=lambda: read_verdict(plan.trials[0].folder).state == "done")
    assert [one.state for one in found] == ["done"]


def test_what_a_dead_sweep_left_running_is_waited_for(tmp_path: Path, plans: Path) -> None:
    plan = planned(tmp_path, "seed=0,1")
    write_plan(plans, 0, "wait")
    trial, said = plan.trials[0], []
    orphan = start_trial(trial_command(FAKE, trial, slot=0), trial)
    wait_until(lambda: read_verdict(trial.folder).state == "running", what="the orphan", timeout_s=LIMIT_S)
    timer = threading.Timer(1.0, (trial.folder / "go").touch)
    timer.start()
    assert [one.state for one in run(plan, said)] == ["done", "done"]
    orphan.wait(LIMIT_S)
    timer.join()
    assert [len(starts(plans, number)) for number in range(2)] == [1, 1]
    assert starts(plans, 1)[0][0] > read_verdict(trial.folder).time, "it holds its place meanwhile"
    assert any("runs already" in line for line in said)


def test_ranks_are_found_below_their_launchers(tmp_path: Path, plans: Path) -> None:
    plan = planned(tmp_path, "seed=0,1")
    for number in (0, 1):
        write_plan(plans, number, "wait")
    launcher = tmp_path / "launcher.py"
    launcher.write_text("import subprocess, sys\nsys.exit(subprocess.call(sys.argv[1:]))\n")
    launch = f"{shlex.quote(sys.executable)} {launcher} {FAKE}"
    processes = [start_trial(trial_command(launch, trial, slot=0), trial) for trial in plan.trials]
    wait_until(
        lambda: all(read_verdict(trial.folder).state == "running" for trial in plan.trials), what="both",
        timeout_s=LIMIT_S,
    )  # fmt: skip
    (rank,) = ranks_of(plan.trials[0])
    assert rank.pid == starts(plans, 0)[0][1] != processes[0].pid
    rank.send_signal(signal.SIGTERM)
    assert processes[0].wait(LIMIT_S) == 75, "the launcher was left to tell it"
    assert read_verdict(plan.trials[1].folder).state == "running"
    (plan.trials[1].folder / "go").touch()
    assert processes[1].wait(LIMIT_S) == 0


def test_launchers_get_ports_and_slots(tmp_path: Path) -> None:
    (trial,) = plan_of(tmp_path, "seed=0").trials
    tail = [str(TRAIN), "--config", str(trial.config_file)]

    def words(launch: str) -> list[str]:
        found = trial_command(launch, trial, slot=3)
        assert found[-3:] == tail
        return found[:-3]

    assert words("python") == [sys.executable]
    deepspeed = words("deepspeed --num_gpus 3")
    assert Path(deepspeed[0]).name == "deepspeed"
    assert (deepspeed[1], deepspeed[3:]) == ("--master_port", ["--num_gpus", "3"])
    assert 15000 <= int(deepspeed[2]) < 32000
    assert words("torchrun --master-port=7 --nproc_per_node 2")[1:] == [
        "--master-port=7",
        "--nproc_per_node",
        "2",
    ]
    assert words("env CUDA_VISIBLE_DEVICES={slot} P={port} x")[1] == "CUDA_VISIBLE_DEVICES=3"
    for wrong, message in (("", "--launch is empty"), ("a 'b", "No closing quotation")):
        with pytest.raises(UserError, match=message):
            trial_command(wrong, trial, slot=0)
    with pytest.raises(UserError, match="no-such-program cannot be started"):
        start_trial(["no-such-program"], trial)


def test_however_the_runner_ends_no_process_is_left(tmp_path: Path, plans: Path) -> None:
    """Whatever ends the loop, no process of it is left: here a bug of whoever is told."""
    plan = planned(tmp_path, "seed=0")
    write_plan(plans, 0, "wait")

    def stop() -> bool:
        if starts(plans, 0):
            raise ZeroDivisionError
        return False

    with pytest.raises(ZeroDivisionError):
        run(plan, should_stop=stop)
    assert ranks_of(plan.trials[0]) == []
    with pytest.raises(psutil.NoSuchProcess):
        psutil.Process(starts(plans, 0)[0][1])


@pytest.mark.parametrize(
    ("code", "told", "state"), [(-15, False, "stopped"), (1, True, "stopped"), (1, False, "failed")]
)
def test_a_trial_that_a_signal_ended_before_it_began_has_not_failed(
    tmp_path: Path, code: int, told: bool, state: str
) -> None:
    (trial, *_) = planned(tmp_path, "seed=1,2").trials
    end = f"import os; os.kill(os.getpid(), {-code})" if code < 0 else f"raise SystemExit({code})"
    process = start_trial([sys.executable, "-c", end], trial)
    process.wait(LIMIT_S)
    one = _Running(trial, 0, process, read_verdict(trial.folder), told=told)
    assert _outcome(one).state == state
    assert read_verdict(trial.folder).state == ("failed" if state == "failed" else "waiting")

"""What cannot work is refused by launcher/train.py on every rank, and a time limit is heeded."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from distill_dist.assemble.run import enter
from distill_dist.comm.rendezvous import free_port
from distill_dist.command_line import launch
from distill_dist.config.load import load_config
from distill_dist.errors import Interrupted, UserError
from distill_dist.run_folder import RunFolder
from distill_dist.stop_signal import StopSignal
from launcher.train import main

# One task of a step of three nodes with two processes each, as srun describes it; the address is nobody's.
TASK = {
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NUM_TASKS": "6",
    "SLURM_STEP_TASKS_PER_NODE": "2(x3)",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
    "MASTER_ADDR": "192.0.2.1",
    "MASTER_PORT": "15000",
}


@pytest.fixture(autouse=True)
def as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Signals and logging of this process stay as they are."""
    monkeypatch.setattr(RunFolder, "log_to_file", lambda *_: None)
    numbers = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
    handlers = [signal.getsignal(number) for number in numbers]
    yield
    for number, handler in zip(numbers, handlers, strict=True):
        signal.signal(number, handler)


@pytest.fixture
def task(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """This process is a task of srun."""
    for name in list(os.environ):
        if name.startswith("SLURM") or name in ("RANK", "WORLD_SIZE"):
            monkeypatch.delenv(name)
    for name, value in TASK.items():
        monkeypatch.setenv(name, value)
    return monkeypatch


def arguments(run_dir: Path, *more: str) -> list[str]:
    return [
        f"run_dir={run_dir}", "method=kd", "data.source=synthetic_nli", "data.prepared=p", "student.path=s",
        "teacher.path=t", "cluster.rendezvous_s=0.5", *more,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (("cluster.teachers=6",), "cluster.teachers=6 leaves no student among the 6 processes"),
        (("cluster.teachers=8", "teacher.shards=4"), "cluster.teachers=8 leaves no student"),
        (("cluster.teachers=3", "cluster.placement=nodes"), "of whole nodes: there are 3 node(s) of 2"),
        (("cluster.teachers=2", "cluster.placement=per_node"), "cluster.placement=per_node cannot spread"),
    ],
    ids=["more teachers than ranks", "a replica over missing hosts", "nodes", "per_node"],
)  # fmt: skip
def test_what_cannot_work_is_one_message(
    task: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    settings: tuple[str, ...],
    message: str,
) -> None:
    with pytest.raises(SystemExit) as ended:
        launch(main, description="", argv=arguments(tmp_path / "run", *settings))
    assert ended.value.code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run" / "state.json").exists()


def test_a_torn_replica_is_a_wrong_configuration(
    task: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    task.setenv("SLURM_PROCID", "0")  # which speaks for all, since all read the same
    with pytest.raises(SystemExit) as ended:
        launch(
            main, description="", argv=arguments(tmp_path / "run", "cluster.teachers=4", "teacher.shards=3")
        )
    assert ended.value.code == 2
    assert "take a multiple of 3" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_node_without_a_gpu_is_refused(
    task: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    be_alone(task)
    task.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as ended:
        launch(main, description="", argv=arguments(tmp_path / "run", "cluster.device=cuda"))
    assert ended.value.code == 2
    assert "cluster.device=cuda, but torch finds no CUDA device" in capsys.readouterr().err


def test_a_time_limit_that_leaves_no_time_is_refused(task: pytest.MonkeyPatch, tmp_path: Path) -> None:
    be_alone(task)
    config = load_config(None, arguments(tmp_path / "run", "cluster.end_margin_s=30"))
    task.setenv("SLURM_JOB_END_TIME", str(int(time.time()) + 20))
    with pytest.raises(UserError, match=r"the job ends in \d+ s .*cluster\.end_margin_s=30.*--time"):
        enter(config, StopSignal())
    verdict = json.loads((tmp_path / "run" / "state.json").read_text(encoding="utf-8"))
    assert (verdict["state"], verdict["resumable"], verdict["refused"]) == ("failed", False, True)


def be_alone(task: pytest.MonkeyPatch) -> None:
    """The only rank of a run, in a job all the same."""
    for name in TASK:
        task.delenv(name)
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "1"), ("MASTER_ADDR", "127.0.0.1")):
        task.setenv(name, value)
    task.setenv("MASTER_PORT", str(free_port("127.0.0.1")))


def test_who_is_stopped_before_the_run_begins_says_so(task: pytest.MonkeyPatch, tmp_path: Path) -> None:
    be_alone(task)
    task.setenv("WORLD_SIZE", "2")
    task.setattr("distill_dist.comm.stop_word.LINGER_S", 0.2)
    stop = StopSignal()
    os.kill(os.getpid(), signal.SIGUSR1)
    with pytest.raises(Interrupted, match=r"stopped by a signal \(rank 0\) before the run began"):
        enter(load_config(None, arguments(tmp_path / "run")), stop)
    verdict = json.loads((tmp_path / "run" / "state.json").read_text(encoding="utf-8"))
    assert (verdict["state"], verdict["resumable"]) == ("stopped", True)


def test_the_clock_stops_a_run_before_its_time_limit(task: pytest.MonkeyPatch, tmp_path: Path) -> None:
    be_alone(task)
    ends_at = int(time.time()) + 1000
    task.setenv("SLURM_JOB_END_TIME", str(ends_at))
    stop = StopSignal()
    enter(load_config(None, arguments(tmp_path / "run", "cluster.end_margin_s=30")), stop)
    task.setattr("distill_dist.stop_signal.LISTEN_S", 0)
    assert not stop.asked()
    task.setattr("distill_dist.assemble.run.time.time", lambda: ends_at - 31)
    assert not stop.asked()
    task.setattr("distill_dist.assemble.run.time.time", lambda: ends_at - 30)
    assert stop.why() == "before the job's time limit"


@pytest.mark.parametrize("value", ["soon", "-1", "1" * 13])
def test_a_time_limit_that_is_none(task: pytest.MonkeyPatch, tmp_path: Path, value: str) -> None:
    be_alone(task)
    task.setenv("SLURM_JOB_END_TIME", value)
    with pytest.raises(UserError, match="SLURM_JOB_END_TIME"):
        enter(load_config(None, arguments(tmp_path / "run")), StopSignal())

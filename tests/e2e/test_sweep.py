"""A sweep through the real launchers: the second trial finds what the first one's teacher said, and a stop goes on."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path

import pytest
from tiny import (
    REPOSITORY,
    RUN_LIMIT_S,
    Started,
    World,
    environment,
    last_json,
    running,
    start,
    state,
    wait_until,
)

pytestmark = pytest.mark.timeout(600)
STEPS = 4


def begin(world: World, out: Path, logs: Path, *, launch: str, teachers: int) -> Started:
    """Two trials of the same seed, so that they see the same rows."""
    arguments = world.student(
        out, "method=gkd_cls", f"cluster.teachers={teachers}", f"train.max_steps={STEPS}"
    )
    command = [
        sys.executable, str(REPOSITORY / "launcher" / "sweep.py"), "--out", str(out), "--grid", "weight.kd=0.3,0.7",
        "--launch", launch, *(text for text in arguments if not text.startswith("run_dir=")),
    ]  # fmt: skip
    return start([command], [environment()], logs=logs, port=0)


def test_two_trials_share_one_cache_and_a_stopped_one_goes_on(world: World, tmp_path: Path) -> None:
    share_and_go_on(world, tmp_path, launch="python", teachers=0)


def share_and_go_on(world: World, tmp_path: Path, *, launch: str, teachers: int) -> None:
    """Two trials; the sweep is stopped when the second one has begun, and called again."""
    out = tmp_path / "sweep"
    first, second = out / "000-kd=0.3", out / "001-kd=0.7"
    with running(begin(world, out, tmp_path / "logs-1", launch=launch, teachers=teachers)) as started:
        wait_until(
            lambda: (second / "state.json").exists() or not started.alive(), what="the second trial",
            timeout_s=2 * RUN_LIMIT_S, every_s=0.05,
        )  # fmt: skip
        started.processes[0].send_signal(signal.SIGTERM)
        assert started.wait() == [75], started.text()
        assert started.alive() == []
        assert "Traceback" not in started.text()
    assert (state(first)["state"], state(second)["state"]) == ("done", "stopped")
    before = (first / "summary.json").read_bytes()
    with running(begin(world, out, tmp_path / "logs-2", launch=launch, teachers=teachers)) as started:
        assert started.wait() == [0], started.text()
        found = last_json(started.stdout())
    assert found["counts"] == {"done": 2}
    assert (first / "summary.json").read_bytes() == before, "what is done is not repeated"
    signals = [json.loads((folder / "summary.json").read_text())["signals"] for folder in (first, second)]
    # at least the rows of its steps, and dev with and without saliency
    assert signals[0]["computed"] >= STEPS * 8 + 2 * 60
    assert signals[1]["rows"] >= STEPS * 8 + 2 * 60
    assert signals[1]["computed"] == 0, "the teacher is paid once"
    assert found["teacher"] == {"questions": 1, "computed": signals[0]["computed"]}
    lines = (out / "sweep.csv").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 3
    assert lines[0].startswith("trial,weight.kd,state,dev.accuracy,")

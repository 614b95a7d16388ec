"""The shipped job scripts: one body, options that Slurm needs, configurations that load, jobs that can work."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from distill_dist.config.load import load_config
from distill_dist.slurm.placement import place
from distill_dist.slurm.script import MARKER, choose, read_script

ROOT = Path(__file__).resolve().parents[3]
SCRIPTS = sorted((ROOT / "slurm").glob("*.sh"))
BARE = {"PATH": os.environ["PATH"]}
NEEDED = {"time", "signal", "requeue", "nodes", "ntasks-per-node", "gpus-per-node", "cpus-per-task"}


def test_there_is_one_for_every_task_and_teacher() -> None:
    names = {path.stem for path in SCRIPTS}
    tasks = ("sst2", "qqp", "mnli", "qnli")
    assert {f"{kind}_{task}" for kind in ("gkd", "teacher") for task in tasks} <= names
    assert "gkd_mnli_het" in names


def test_below_the_marker_all_are_the_same() -> None:
    bodies = {path.read_text(encoding="utf-8").split(MARKER)[1] for path in SCRIPTS}
    assert len(bodies) == 1
    assert "scontrol requeue" in bodies.pop()


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_a_script_is_bash_and_asks_for_all_that_its_body_needs(path: Path) -> None:
    assert subprocess.run(["bash", "-n", path], timeout=10, check=False).returncode == 0
    script = read_script(path)
    for options in script.parts:
        assert options.keys() >= NEEDED
        assert options["signal"] == "USR1@120"
    assert script.parts[0]["job-name"] == path.stem
    assert script.parts[0]["open-mode"] == "append"  # or a requeued job's log would begin anew


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_every_task_of_a_script_can_work(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    script = read_script(path)
    chosen = [choose(script, BARE, task=task) for task in script.array or (None,)]
    assert len({one.run_dir for one in chosen}) == len(chosen)
    for one in chosen[:: max(1, len(chosen) // 3)]:
        config = load_config(Path(one.config), [*one.settings, f"run_dir={one.run_dir}"])
        seats = place(config, script.shape())
        assert sum(seat.teaches for seat in seats) == config.cluster.teachers
        assert len(seats) == sum(part.nodes[0] * part.tasks for part in script.shape())
    if not script.array:
        assert chosen[0].run_dir == f"runs/{path.stem}"

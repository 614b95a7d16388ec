"""launcher/sweep.py as it is called: messages, one JSON line, signals, kill -9, an array with an sbatch that notes."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from launchers import load_launcher
from tiny import Started, environment, start, state, wait_until

from distill_dist.config.load import load_config
from distill_dist.durable import hold_lock
from sweep.cases import BASE, FAKE, ROOT, plan_of, starts, write_plan

LIMIT_S = 90.0
pytestmark = pytest.mark.timeout(240)
SBATCH = """#!/bin/bash
printf '%s\\n' "$@" >> "$NOTES/arguments"
env > "$NOTES/environment"
echo $((4711 + $(wc -l < "$NOTES/arguments")))
"""
# tasks are in the queue while the file is there
SQUEUE = '#!/bin/bash\ncat "$NOTES/queue" 2>/dev/null || true\n'


def begin(folder: Path, *arguments: str, **variables: str) -> Started:
    """The command with fake trials; its plans are in folder/plans, its sweep in folder/sweep."""
    (folder / "plans").mkdir(exist_ok=True)
    command = [
        sys.executable,
        str(ROOT / "launcher" / "sweep.py"),
        "--out",
        str(folder / "sweep"),
        *arguments,
    ]
    variables = environment(FAKE_TRIALS=str(folder / "plans"), NOTES=str(folder), **variables)
    return start([command], [variables], logs=folder / "logs", port=0)


def sweep(folder: Path, *arguments: str, **variables: str) -> tuple[int, str, str]:
    """(exit code, stdout, stderr)."""
    started = begin(folder, *arguments, **variables)
    (code,) = started.wait(LIMIT_S)
    return code, started.stdout(), started.stderr()


def local(*arguments: str) -> list[str]:
    return ["--launch", FAKE, *BASE, *arguments]


def test_from_nothing_to_the_table_and_again(tmp_path: Path) -> None:
    grid = ("--grid", "weight.kd=0.3,0.5", "--grid", "seed=1,2")
    write_plan(tmp_path / "plans", 1, "failed")
    code, out, err = sweep(tmp_path, *local(*grid))
    assert code == 0, err
    found = json.loads(out)
    assert out.count("\n") == 1
    assert found == json.loads((tmp_path / "sweep" / "summary.json").read_text())
    assert found["counts"] == {"done": 3, "failed": 1}
    assert found["best"]["overrides"] == {"weight.kd": "0.5"}
    assert abs(found["best"]["mean"] - 0.515) < 1e-12
    assert found["teacher"] == {"questions": 1, "computed": 520}
    assert (tmp_path / "sweep" / "sweep.csv").read_text().count("\n") == 5
    assert "| 0.5150 ± 0.0071 | done |" in err
    assert "1 of 4 trials failed" in err
    assert "all trials ask the same of their teacher" in err
    again, out, err = sweep(tmp_path, *local(*grid))
    assert (again, json.loads(out)) == (0, found), err
    assert [len(starts(tmp_path / "plans", number)) for number in range(4)] == [1] * 4
    code, out, err = sweep(tmp_path, *local("--grid", "weight.kd=0.3,0.6", "--grid", "seed=1,2"))
    assert (code, out) == (2, "")
    assert "holds another sweep, 4 trials over weight.kd, seed" in err


def test_a_signal_is_passed_on_and_the_same_command_goes_on(tmp_path: Path) -> None:
    write_plan(tmp_path / "plans", 0, "wait", "done")
    command = local("--grid", "seed=1,2")
    run_dir = tmp_path / "sweep" / "000-seed=1"
    started = begin(tmp_path, *command)
    wait_until(lambda: (run_dir / "state.json").exists(), what="the first trial", timeout_s=LIMIT_S)
    started.processes[0].send_signal(signal.SIGUSR1)
    assert started.wait(LIMIT_S) == [75], started.text()
    assert started.stdout() == ""
    assert "stopped: asked to; the same command goes on" in started.stderr()
    assert state(run_dir)["reason"] == "asked to stop at step 3"
    assert json.loads((tmp_path / "sweep" / "summary.json").read_text())["counts"] == {
        "stopped": 1,
        "waiting": 1,
    }
    code, out, err = sweep(tmp_path, *command)
    assert code == 0, err
    assert json.loads(out)["counts"] == {"done": 2}
    assert [len(starts(tmp_path / "plans", number)) for number in (0, 1)] == [2, 1]


def test_kill_9_of_the_sweep_leaves_a_trial_that_the_next_call_waits_for(tmp_path: Path) -> None:
    write_plan(tmp_path / "plans", 0, "wait")
    command, run_dir = local("--grid", "seed=1,2"), tmp_path / "sweep" / "000-seed=1"
    killed = begin(tmp_path, *command)
    wait_until(lambda: (run_dir / "state.json").exists(), what="the first trial", timeout_s=LIMIT_S)
    killed.processes[0].kill()
    killed.processes[0].wait()
    started = begin(tmp_path, *command)
    wait_until(lambda: "runs already" in started.stderr(), what="it to be found", timeout_s=LIMIT_S)
    (run_dir / "go").touch()
    assert started.wait(LIMIT_S) == [0], started.text()
    assert [len(starts(tmp_path / "plans", number)) for number in (0, 1)] == [1, 1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--grid", "objective.alpha=1,2"], "objective.alpha: no such field"),
        (["--grid", "weight.kd=0.3,2"], "trial 1 (weight.kd=2)"),
        (["--grid", "weight.kd"], "--grid weight.kd: write --grid field=…"),
        (
            ["--grid", "seed=1,2", "--launch", "python", "cluster.teachers=1"],
            "cluster.teachers=1 leaves no student",
        ),
        (["--grid", "seed=1,2", "--slurm", "slurm/none.sh"], "slurm/none.sh: No such file"),
        (["--sweep", "absent.yaml"], "sweep absent.yaml: No such file"),
    ],
)
def test_what_cannot_work_is_one_message_and_writes_nothing(
    tmp_path: Path, arguments: list[str], message: str
) -> None:
    code, out, err = sweep(tmp_path, *BASE, *arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert "Traceback" not in err
    assert not (tmp_path / "sweep").exists()


def test_a_dry_run_shows_all_and_writes_nothing(tmp_path: Path) -> None:
    file = tmp_path / "sweep.yaml"
    file.write_text(
        f"config: {ROOT}/configs/gkd_mnli.yaml\nrandom: {{train.learning_rate: 'loguniform(1e-5, 1e-3)'}}\ntrials: 2\n"
        "grid: {seed: [1, 2]}\n"
    )
    code, out, err = sweep(
        tmp_path, "--sweep", str(file), "--slurm", str(ROOT / "slurm/gkd_mnli.sh"), "--dry-run"
    )
    assert code == 0, err
    assert len(json.loads(out)["run_dirs"]) == 4
    assert "ranks 8-11      teacher  node 3    gpu 0-3" in err
    assert "003-learning_rate=" in err
    assert not (tmp_path / "sweep").exists()


def test_two_sweeps_in_one_folder_are_refused(tmp_path: Path) -> None:
    (tmp_path / "sweep").mkdir()
    assert hold_lock(tmp_path / "sweep" / ".lock") is None
    code, _, err = sweep(tmp_path, *local("--grid", "seed=1,2"))
    assert code == 2
    assert "is in use by another sweep (process" in err


def programs(folder: Path) -> dict[str, str]:
    """sbatch and squeue that note what they get."""
    place = folder / "programs"
    place.mkdir()
    for name, text in (("sbatch", SBATCH), ("squeue", SQUEUE)):
        (place / name).write_text(text, encoding="utf-8")
        (place / name).chmod(0o755)
    bash = shutil.which("bash")
    assert bash
    return {"PATH": f"{place}:{Path(bash).parent}"}


def test_an_array_is_submitted_once_and_those_that_pay_go_ahead(tmp_path: Path) -> None:
    command = [
        "--config", str(ROOT / "configs/gkd_mnli.yaml"), "--grid", "weight.kd=0.3,0.5", "--grid", "seed=1,2",
        "--slurm", str(ROOT / "slurm/gkd_mnli.sh"), "--parallel", "2", "--sbatch=--time=1:00:00",
    ]  # fmt: skip
    variables = programs(tmp_path)
    code, out, err = sweep(tmp_path, *command, **variables)
    assert code == 0, err
    found: dict[str, Any] = json.loads(out)
    script = str(ROOT / "slurm/gkd_mnli.sh")
    first = ["--parsable", "--time=1:00:00", "--array=0%2", script]
    rest = [
        "--parsable",
        "--time=1:00:00",
        "--array=1,2,3%2",
        f"--dependency=afterany:{found['jobs'][0]}",
        script,
    ]
    assert (tmp_path / "arguments").read_text().splitlines() == first + rest
    variables_of_job = (tmp_path / "environment").read_text().splitlines()
    folders = tmp_path / "sweep" / "run_dirs.txt"
    assert f"SWEEP={folders}" in variables_of_job
    assert folders.read_text().splitlines()[3] == f"{tmp_path}/sweep/003-kd=0.5,seed=2"
    (job,) = (tmp_path / "sweep/003-kd=0.5,seed=2/jobs").iterdir()
    frozen = load_config(job / "config.yaml", [])
    assert (frozen.weight.kd, frozen.seed, frozen.cluster.teachers) == (0.5, 2, 4)
    assert frozen.teacher.cache_dir == str(tmp_path / "sweep" / "cache")
    (tmp_path / "queue").write_text(
        f"{found['jobs'][0]} 0\n{found['jobs'][1]} 1\n{found['jobs'][1]} 3\n99 2\n"
    )
    (tmp_path / "arguments").unlink()
    code, out, err = sweep(tmp_path, *command, **variables)
    assert code == 0, err
    assert (tmp_path / "arguments").read_text().splitlines() == [
        "--parsable",
        "--time=1:00:00",
        "--array=2%2",
        script,
    ]
    assert json.loads(out)["counts"] == {"queued": 3, "waiting": 1}
    here = [*command[:6], "cluster.teachers=4", "cluster.placement=nodes"]  # as the script says
    code, _, err = sweep(tmp_path, *here, "--launch", FAKE, **variables)
    assert code == 2
    assert "trials [0, 1, 3] are in Slurm's queue" in err


def test_nothing_imports_torch() -> None:
    code = (
        "import sys, launcher.sweep; sys.exit(any(name in sys.modules for name in ('torch', 'transformers')))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=60, check=False).returncode == 0


def test_a_sweep_in_a_job_stops_before_its_trials_have_to(tmp_path: Path) -> None:
    before = load_launcher("sweep")._before_the_jobs_end
    plan, now = plan_of(tmp_path, "seed=1,2"), int(time.time())
    margin_s = plan.trials[0].config.cluster.end_margin_s
    assert before(None, plan) is None
    assert before(now + int(margin_s) + 60, plan) is None
    assert before(now + int(margin_s) + 5, plan) == "before the job's time limit"
    assert before(now + 5, plan_of(tmp_path, "seed=1,2", base=(*BASE, "cluster.end_margin_s=0"))) is None

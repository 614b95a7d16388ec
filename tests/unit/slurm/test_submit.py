"""launcher/submit.py as it is called, with an sbatch that notes what it gets; real Slurm: tests/cluster."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from distill_dist.config.load import load_config
from distill_dist.errors import UserError
from distill_dist.invocation import commit_of
from distill_dist.slurm import submit as submit_module

ROOT = Path(__file__).resolve().parents[3]
NOTES = """#!/bin/bash
printf '%s\\n' "$@" > "$NOTES/arguments"
env > "$NOTES/environment"
echo 4711
"""


def submit(*arguments: str, folder: Path, sbatch: str | None = NOTES) -> subprocess.CompletedProcess[str]:
    programs = folder / "programs"
    programs.mkdir(exist_ok=True)
    if sbatch is not None:
        (programs / "sbatch").write_text(sbatch, encoding="utf-8")
        (programs / "sbatch").chmod(0o755)
    bash = shutil.which("bash")
    assert bash
    path = f"{programs}:{Path(bash).parent}" if sbatch else str(Path(bash).parent)
    kept = {name: value for name, value in os.environ.items() if name not in ("CONFIG", "RUN_DIR")}
    return subprocess.run(
        [sys.executable, "launcher/submit.py", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=60,
        env={**kept, "PATH": path, "PYTHONPATH": str(ROOT), "NOTES": str(folder)}, check=False,
    )  # fmt: skip


def test_a_dry_run_shows_all_and_writes_nothing(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    done = submit(
        "--config", "configs/gkd_mnli.yaml", "--dry-run", f"run_dir={run_dir}", folder=tmp_path, sbatch=None
    )
    assert done.returncode == 0, done.stderr
    assert "#SBATCH --signal=USR1@120" in done.stdout
    assert "ranks 8-11      teacher  node 3    gpu 0-3" in done.stdout
    assert "teacher: unknown until" in done.stdout
    assert (
        "warning: data.prepared=prepared/mnli is not here: the job fails unless its nodes see it"
        in done.stdout
    )
    assert "warning: teacher.path=runs/teacher_mnli/model is not here" in done.stdout
    assert json.loads(done.stdout.splitlines()[-1]) == {"run_dirs": [str(run_dir)]}
    assert not run_dir.exists()


def test_a_job_gets_its_code_and_configuration_before_it_waits(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    done = submit(
        "--config",
        "configs/gkd_mnli.yaml",
        f"run_dir={run_dir}",
        "seed=3",
        "--sbatch=--nodes=2",
        folder=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == {"job": "4711", "run_dirs": [str(run_dir)]}
    (job,) = (run_dir / "jobs").iterdir()
    assert (tmp_path / "arguments").read_text().splitlines() == [
        "--parsable",
        "--nodes=2",
        "slurm/gkd_mnli.sh",
    ]
    environment = (tmp_path / "environment").read_text().splitlines()
    assert f"FROZEN={job.name}" in environment
    assert f"RUN_DIR={run_dir}" in environment
    config = load_config(job / "config.yaml", [])
    assert (config.seed, config.cluster.teachers, config.run_dir) == (3, 4, str(run_dir))
    assert config.deepspeed_config == str(job / "deepspeed.json")
    assert (job / "launcher" / "train.py").read_bytes() == (ROOT / "launcher" / "train.py").read_bytes()
    assert (job / "distill_dist" / "trainer.py").is_file()
    assert not list(job.rglob("__pycache__"))
    assert commit_of(job) == commit_of(ROOT), "of the code that runs, whatever the checkout holds by then"


def test_every_task_of_an_array_gets_its_own(tmp_path: Path) -> None:
    run_dir, script = tmp_path / "sweep", tmp_path / "array.sh"
    own = (ROOT / "slurm" / "gkd_mnli.sh").read_text(encoding="utf-8")
    own = own.replace(
        "run_dir=${RUN_DIR:-runs/gkd_mnli}", "run_dir=${RUN_DIR:-runs/array}/$SLURM_ARRAY_TASK_ID"
    )
    script.write_text(own.replace("settings=(", 'settings=(seed="$SLURM_ARRAY_TASK_ID" '), encoding="utf-8")
    done = submit(
        "--config", "configs/gkd_mnli.yaml", "--script", str(script), "--sbatch=--array=0,5",
        f"run_dir={run_dir}", folder=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = [
        load_config(next((run_dir / str(task) / "jobs").iterdir()) / "config.yaml", []) for task in (0, 5)
    ]
    assert [one.run_dir for one in found] == [f"{run_dir}/0", f"{run_dir}/5"]
    assert [one.seed for one in found] == [0, 5]
    codes = [next((run_dir / str(task) / "jobs").glob("*/distill_dist/trainer.py")) for task in (0, 5)]
    assert codes[0].read_bytes() == codes[1].read_bytes() == (ROOT / "distill_dist/trainer.py").read_bytes()
    assert codes[0].samefile(codes[1])


@pytest.mark.parametrize(
    ("arguments", "sbatch", "message"),
    [
        (["cluster.teachers=12"], NOTES, "cluster.teachers=12 leaves no student among the 12 processes"),
        (["cluster.placement=last", "weight.kd=2"], NOTES, "weight.kd = 2"),
        (["--sbatch=--gpus-per-node=0", "cluster.device=cuda"], NOTES, "the nodes have no GPU"),
        (
            [],
            "#!/bin/bash\necho 'invalid partition' >&2\nexit 1\n",
            "sbatch refused the job: invalid partition",
        ),
        (["cluster.teachers=4", "teacher.shards=3"], NOTES, "take a multiple of 3"),
        (
            ["cluster.teachers=8", "teacher.shards=8", "--sbatch=--nodes=2"],
            NOTES,
            "cluster.teachers=8 leaves no",
        ),
        (["--sbatch=--nodes=1-3"], NOTES, "cluster.teachers=4 leaves no student among the 4 processes"),
        (["--script", "slurm/none.sh"], NOTES, "slurm/none.sh: No such file"),
        (
            ["--script", "slurm/gkd_mnli_het.sh", "--sbatch=--array=0-1"],
            NOTES,
            "slurm/gkd_mnli_het.sh is a heterogeneous job, of which Slurm takes no array",
        ),
    ],
    ids=[
        "teachers",
        "config",
        "gpu",
        "sbatch",
        "torn replica",
        "replica over missing hosts",
        "fewest nodes",
        "script",
        "array of a heterogeneous job",
    ],
)
def test_what_cannot_work_is_one_message(
    tmp_path: Path, arguments: list[str], sbatch: str, message: str
) -> None:
    done = submit(
        "--config",
        "configs/gkd_mnli.yaml",
        f"run_dir={tmp_path}/run",
        *arguments,
        folder=tmp_path,
        sbatch=sbatch,
    )
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "arguments").exists()
    assert not (tmp_path / "run").exists(), "what is not to be leaves nothing"


def test_an_sbatch_that_does_not_answer_may_have_taken_the_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sbatch = tmp_path / "sbatch"
    sbatch.write_text("#!/bin/bash\nexec sleep 60\n", encoding="utf-8")
    sbatch.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(submit_module, "_SBATCH_S", 0.2)
    monkeypatch.chdir(ROOT)
    config = Path("configs/gkd_mnli.yaml")
    overrides = [f"run_dir={tmp_path}/run"]
    found = submit_module.prepare_submission(
        Path("slurm/gkd_mnli.sh"), config, load_config(config, overrides), overrides, []
    )
    with pytest.raises(UserError, match="did not answer within 0 s: see with `squeue --me`"):
        found.submit(ROOT)
    assert list((tmp_path / "run" / "jobs").iterdir()), "the code of a job that may run"


def test_nothing_imports_torch() -> None:
    code = "import sys, launcher.submit; sys.exit(any(name in sys.modules for name in ('torch', 'transformers')))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=60, check=False).returncode == 0


def test_a_job_folder_outside_of_its_run_is_refused(tmp_path: Path) -> None:
    done = submit(
        "--config", "configs/gkd_mnli.yaml", "--freeze", str(tmp_path / "elsewhere"), f"run_dir={tmp_path}/run",
        folder=tmp_path,
    )  # fmt: skip
    assert done.returncode == 2
    assert "RUN_DIR=FOLDER" in done.stderr
    assert not (tmp_path / "elsewhere").exists()

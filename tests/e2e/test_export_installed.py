"""Exported students in a new environment that has torch and transformers from the package index, and kills on the way.

Minutes and a few hundred megabytes: `make export`.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny import REPOSITORY, World, environment, launch, start, state, wait_until

from e2e.conftest import Reference
from e2e.exports import check_elsewhere, export, export_projected

pytestmark = pytest.mark.timeout(3600)


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of an environment with nothing but torch, in the version of this one, and the newest transformers."""
    folder = tmp_path_factory.mktemp("installed") / "venv"
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True, timeout=300)
    found = folder / "bin" / "python"
    pip = [str(found), "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    for package in (f"torch=={torch.__version__.partition('+')[0]}", "transformers"):
        subprocess.run([*pip, package], check=True, timeout=1800)
    return found


def test_a_student_as_wide_as_its_teacher(python: Path, reference: Reference, tmp_path: Path) -> None:
    check_elsewhere(python, export(reference.run_dir, tmp_path), tmp_path)


def test_a_student_with_a_projection(python: Path, world: World, tmp_path: Path) -> None:
    check_elsewhere(python, export_projected(world, tmp_path), tmp_path)


@pytest.mark.parametrize("moment", ["model.safetensors", "tokenizer.json", "onnx/model.onnx", "README.md"])
def test_a_kill_leaves_the_export_before_or_none(reference: Reference, moment: str, tmp_path: Path) -> None:
    out = tmp_path / "out" / "student"
    words = [str(reference.run_dir), "--out", str(out), "--no-evaluate", "--onnx"]
    command = [sys.executable, str(REPOSITORY / "launcher" / "export.py"), *words]
    started = start([command], [environment()], logs=tmp_path / "logs", port=0)
    half = f".student.*.tmp/{moment}"
    wait_until(lambda: list(out.parent.glob(half)) or out.exists(), what=half, timeout_s=300, every_s=1e-4)
    started.processes[0].send_signal(signal.SIGKILL)
    started.processes[0].wait()
    # the last file and the move are a moment apart: the kill may come after it
    assert not out.exists() or (out / "export.json").is_file()
    done = launch("export.py", words, logs=tmp_path / "logs-again")
    assert done.processes[0].returncode == 0, done.text()
    assert [path.name for path in out.parent.iterdir()] == ["student"]
    assert state(reference.run_dir)["state"] == "done"

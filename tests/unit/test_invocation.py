"""What was typed comes through launchers that start the script, and not through shells that were handed a line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tiny import environment

SCRIPT = (
    "import json\nfrom distill_dist.invocation import command_typed\nprint(json.dumps(command_typed()))\n"
)
LAUNCHER = (
    "import subprocess, sys\nsys.exit(subprocess.run([sys.executable, '-u', *sys.argv[2:]]).returncode)\n"
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "train.py").write_text(SCRIPT, encoding="utf-8")
    (tmp_path / "many.py").write_text(LAUNCHER, encoding="utf-8")
    return tmp_path


def said(command: list[str], folder: Path) -> list[str]:
    done = subprocess.run(
        command, cwd=folder, env=environment(), capture_output=True, text=True, timeout=60, check=True
    )
    found = json.loads(done.stdout)
    assert isinstance(found, list)
    return found


def test_a_launchers_own_words(folder: Path) -> None:
    typed = [sys.executable, "many.py", "--num_gpus=3", "train.py", "seed=1", "a b"]
    assert said(typed, folder) == typed


def test_launchers_of_launchers(folder: Path) -> None:
    typed = [sys.executable, "many.py", "-x", "many.py", "-y", "train.py"]
    assert said(typed, folder) == typed


def test_a_shell_is_no_launcher(folder: Path) -> None:
    line = f"{sys.executable} train.py seed=1; true"
    assert said(["sh", "-c", line], folder) == [sys.executable, "train.py", "seed=1"]

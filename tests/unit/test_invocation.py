"""What was typed comes through launchers that start the script, and not through shells that were handed a line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tiny import environment

from distill_dist.invocation import COMMIT, commit_of

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


def git(folder: Path, *words: str) -> str:
    who = ("-c", "user.name=n", "-c", "user.email=e", "-c", "commit.gpgsign=false")
    done = subprocess.run(
        ["git", "-C", str(folder), *who, *words], capture_output=True, text=True, timeout=60, check=True
    )
    return done.stdout.strip()


def test_whose_code_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    git(tmp_path, "init")
    git(tmp_path, "commit", "--allow-empty", "-m", "m")
    head = git(tmp_path, "rev-parse", "HEAD")
    assert commit_of(tmp_path) == head
    copy = tmp_path / "runs" / "copy"
    copy.mkdir(parents=True)
    assert commit_of(copy) == "", "what lies below a checkout is not of its commit"
    (copy / COMMIT).write_text("abc\n", encoding="utf-8")
    assert commit_of(copy) == "abc"
    monkeypatch.setenv("PATH", str(copy))
    assert commit_of(tmp_path) == "", "no git"

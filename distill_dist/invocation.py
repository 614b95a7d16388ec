"""How this process came to be: the command that somebody typed, which a launcher hides from it, and whose code."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from pathlib import Path

import psutil

COMMIT = "commit"  # a file in a copy of the code: where it is from
_GIT_S = 10.0


def command_typed() -> list[str]:
    """The words of the command line of the topmost ancestor that was given this script's name as a word of its own.

    `deepspeed --num_gpus 3 launcher/train.py …` and torchrun are such ancestors; a shell that was handed the whole
    line as one word is not, nor is a Slurm daemon, so a task of srun has its own line. This process's own line where
    nothing above can be read.
    """
    script = sys.argv[0]
    found = [sys.executable, *sys.argv]
    with contextlib.suppress(psutil.Error, OSError):
        for process in (psutil.Process(), *psutil.Process().parents()):
            words = process.cmdline()
            if script not in words:
                break
            found = words
    return found


def commit_of(code: Path) -> str:
    """The commit of the checkout, or of the copy of one, that ``code`` is; "" where nobody can say.

    A copy below a checkout, and a package installed there, are not the checkout: that goes on without them.
    """
    with contextlib.suppress(OSError):
        return (code / COMMIT).read_text(encoding="utf-8").strip()
    try:
        done = subprocess.run(
            ["git", "-C", str(code), "rev-parse", "--show-toplevel", "HEAD"],
            capture_output=True, text=True, timeout=_GIT_S, check=False,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):  # there is no git, or it hangs
        return ""
    lines = done.stdout.splitlines()
    is_its_own = done.returncode == 0 and len(lines) == 2 and Path(lines[0]).resolve() == code.resolve()
    return lines[1] if is_its_own else ""

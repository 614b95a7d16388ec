"""The command that somebody typed to start this process, which a launcher between the two hides from it."""

from __future__ import annotations

import contextlib
import sys

import psutil


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

"""A disk that can be filled without harm."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import pytest


@contextmanager
def small_disk(
    place: Path, size: str, *, otherwise: Callable[[str], NoReturn] = pytest.skip
) -> Iterator[Path]:
    """A file system of its own at ``place``; ``otherwise`` is told where none can be mounted (CAP_SYS_ADMIN)."""
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        otherwise("a full disk needs the program `mount`")
    if done.returncode:
        otherwise(
            f"a disk to fill has to be mounted: run as root, or `unshare -rm make test` ({done.stderr.strip()})"
        )
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)

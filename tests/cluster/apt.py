"""Programs that tests need and the machine lacks, by apt."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

INSTALL_LIMIT_S = 300.0
POLICY = Path("/usr/sbin/policy-rc.d")


def install(packages: Mapping[str, str]) -> None:
    """The package of every program that is missing. AssertionError with apt's words where that fails."""
    missing = _missing(packages)
    if not missing:
        return
    command = ["apt-get", "install", "-y", "--no-install-recommends", *missing]
    with _nothing_starts():
        done = _apt(command)
        if done.returncode:
            _apt(["apt-get", "update"])
            done = _apt(command)
    assert not _missing(packages), f"{' '.join(command)}: {(done.stderr or done.stdout)[-500:]}"


def cannot_install(packages: Mapping[str, str]) -> str | None:
    """Why they cannot be had; None where they are there, or apt is."""
    missing = _missing(packages)
    if missing and shutil.which("apt-get") is None:
        return f"{' '.join(missing)} are not installed, and there is no apt-get to install them"
    return None


def _missing(packages: Mapping[str, str]) -> list[str]:
    return sorted({package for program, package in packages.items() if not shutil.which(program)})


def _apt(command: list[str]) -> subprocess.CompletedProcess[str]:
    variables = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    return subprocess.run(
        command, env=variables, capture_output=True, text=True, timeout=INSTALL_LIMIT_S, check=False
    )


@contextlib.contextmanager
def _nothing_starts() -> Iterator[None]:
    """Debian starts what it installs, unless this file says no."""
    if POLICY.exists():
        yield
        return
    POLICY.write_text("#!/bin/sh\nexit 101\n", encoding="utf-8")
    POLICY.chmod(0o755)
    try:
        yield
    finally:
        POLICY.unlink()

"""A process whose reader goes away, as when an ssh ends before what it started."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

CHILD = """
import sys, pathlib
from tqdm import tqdm
from distill_dist.console import outlive_readers
if sys.argv[2] == "outlive":
    outlive_readers()
print("ready", flush=True)
sys.stdin.read()  # until nobody reads us any more
for number in tqdm(range(3), mininterval=0):
    print("more", number, flush=True)
    sys.stderr.write("and more\\n")
pathlib.Path(sys.argv[1]).write_text("saved")
"""


@pytest.mark.parametrize(("how", "saves"), [("outlive", True), ("die", False)])
def test_what_nobody_reads_does_not_end_the_work(tmp_path: Path, how: str, saves: bool) -> None:
    path = tmp_path / "saved"
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(path), how],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert child.stdin is not None
    assert child.stdout is not None
    assert child.stderr is not None
    assert child.stdout.readline() == b"ready\n"
    child.stdout.close()
    child.stderr.close()
    child.stdin.close()
    assert (child.wait(60) == 0) == saves
    assert path.exists() == saves


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_disk_is_still_told(tmp_path: Path) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-c", CHILD, str(tmp_path / "saved"), "outlive"],
            stdin=subprocess.DEVNULL, stdout=full, stderr=subprocess.PIPE, timeout=60, check=False,
        )  # fmt: skip
    assert done.returncode != 0
    assert b"No space left" in done.stderr

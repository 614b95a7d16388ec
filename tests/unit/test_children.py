"""Children that are hit while they still import."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path

import pytest

from distill_dist.children import start_child

CHILD = """
import time
print("begun", flush=True)
time.sleep(0.3)
from distill_dist.children import child_job
print(child_job(), flush=True)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_signals_to_the_whole_tree_do_not_end_a_child_that_imports(
    number: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "slow_child.py").write_text(CHILD, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{Path(__file__).parents[2]}")
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    with start_child("slow_child", {"a": 1}, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"begun\n"
        child.send_signal(number)
        assert child.stdout.readline() == b"{'a': 1}\n"
        assert child.wait(10) == 0
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == before

"""`make demo` as a new user runs it: a clean copy of the project, no environment, nothing prepared."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# Install, then at most 6 minutes on 2 free cores; other tests may run beside it.
LIMIT_S = 1500


def clean_copy(target: Path) -> None:
    """The files that git tracks or would track, and nothing that was built, prepared or run here."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
        timeout=60,
    )
    for name in filter(None, listed.stdout.decode().split("\0")):
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name)


@pytest.mark.timeout(LIMIT_S + 60)
def test_make_demo_works_in_a_clean_copy(tmp_path: Path) -> None:
    clean_copy(tmp_path)
    environment = {
        name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")
    }
    python = Path(sys.base_prefix) / "bin" / f"python3.{sys.version_info.minor}"
    done = subprocess.run(
        ["make", "--silent", "demo", f"PYTHON={python}"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    printed = [line for line in done.stdout.splitlines() if line.strip()]
    assert len(printed) == 1, f"stdout is one JSON line, not {printed}"
    summary = json.loads(printed[0])
    assert summary == json.loads((tmp_path / "runs/demo/summary.json").read_text(encoding="utf-8"))
    assert summary["world"] == {"students": 2, "teachers": 1}
    assert summary["zero_stage"] == 1
    assert summary["method"] == "gkd_cls"
    found = summary["comparison"]
    assert found["teacher"]["accuracy"] >= 0.85
    assert found["distilled"]["accuracy"] >= found["bag_of_words"] + 0.10
    assert found["distilled"]["parameters"] < found["teacher"]["parameters"]
    assert "student, distilled (GKD-CLS)" in done.stderr
    assert (tmp_path / "runs/demo/model/model.safetensors").is_file()

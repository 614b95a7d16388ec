"""One tiny world for all tests through the launchers, and one undisturbed run in it to compare with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
from tiny import Started, World, make_world, running, start_deepspeed

TRACED = ("cluster.teachers=1", "train.trace=true", "train.checkpoint_every=10")


@dataclass(frozen=True)
class Reference:
    """A finished run of 2 students and 1 teacher under the real DeepSpeed launcher."""

    run_dir: Path
    codes: list[int]
    started: Started
    shm_before: set[str]


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Prepared corpus and teacher; about 20 s, once."""
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


def shared_memory() -> set[str]:
    """Names in /dev/shm, where killed processes leave segments behind."""
    folder = Path("/dev/shm")
    return {path.name for path in folder.iterdir()} if folder.is_dir() else set()

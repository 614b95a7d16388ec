"""The undisturbed run of tests/conftest.py to compare with, and what processes leave behind."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from tiny import Started, environment

# what takes half an hour, and minutes of six ranks; a folder's conftest may leave files out by this name
_LONG_FILES = {
    "test_ranks_killed.py": "DISTILL_KILLS",
    "test_sharded_replicas.py": "DISTILL_FAULTS",
    "test_export_installed.py": "DISTILL_WHOLE_EXPORT",
}
collect_ignore = [file for file, switch in _LONG_FILES.items() if not os.environ.get(switch)]
TRACED = ("cluster.teachers=1", "train.trace=true", "train.checkpoint_every=10")


@dataclass(frozen=True)
class Reference:
    """A finished run of 2 students and 1 teacher under the real DeepSpeed launcher."""

    run_dir: Path
    codes: list[int]
    started: Started
    shm_before: set[str]


def shared_memory() -> set[str]:
    """Names in /dev/shm, where killed processes leave segments behind."""
    folder = Path("/dev/shm")
    return {path.name for path in folder.iterdir()} if folder.is_dir() else set()


@dataclass(frozen=True)
class SlowDisk:
    """Of runs with ``variables`` in their environment: see slow_writes/sitecustomize.py."""

    settings: Path

    def take(self, seconds: float, *, from_step: int = 0) -> None:
        """So long do checkpoints take to be written, those of steps before ``from_step`` no time at all."""
        written = self.settings.with_suffix(".new")
        written.write_text(f"{from_step} {seconds}", encoding="ascii")
        written.replace(self.settings)

    @property
    def variables(self) -> dict[str, str]:
        """For the processes of the run."""
        folder = str(Path(__file__).parent / "slow_writes")
        path = os.pathsep.join([folder, environment()["PYTHONPATH"]])
        return {"PYTHONPATH": path, "SLOW_WRITES": str(self.settings)}

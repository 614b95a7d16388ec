"""Everything a run leaves behind lies in one folder; this file knows its layout.

config.yaml  deepspeed.json  versions.json   what ran
state.json                                   the verdict, since launchers lose exit codes
logs/rank-00002.log                          one per process
checkpoints/  tensorboard/  trace-*.jsonl    while it runs
model/                                       the best epoch as a Hugging Face folder
summary.json                                 the result
"""

from __future__ import annotations

import logging
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

from distill_dist.durable import durable_folder, write_json
from distill_dist.errors import Interrupted, UserError

_PACKAGES = ("torch", "deepspeed", "transformers", "datasets", "webdataset", "omegaconf", "tensorboard")


class RunFolder:
    """Paths and small files of one run."""

    def __init__(self, path: Path) -> None:
        """Create the folder where it is missing."""
        self.path = path
        try:
            (path / "logs").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"run_dir={path} cannot be made: {error.strerror}") from error
        self.checkpoints = path / "checkpoints"
        self.tensorboard = path / "tensorboard"
        self.model = path / "model"
        self.summary = path / "summary.json"

    def log_to_file(self, rank: int) -> None:
        """Everything that rank logs goes to its own file; warnings and worse to stderr as well."""
        handler = logging.FileHandler(self.path / "logs" / f"rank-{rank:05d}.log")
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        console = logging.StreamHandler(sys.stderr)
        console.setLevel(logging.INFO if rank == 0 else logging.WARNING)
        console.setFormatter(logging.Formatter(f"[rank {rank}] %(message)s"))
        for target in (handler, console):
            target.addFilter(lambda record: record.name.startswith("distill_dist") or record.levelno >= 30)
        logging.basicConfig(level=logging.INFO, handlers=[handler, console], force=True)

    def describe(self, *, config_yaml: str, deepspeed_json: dict[str, Any]) -> None:
        """What runs: the resolved configuration, DeepSpeed's JSON, versions and commit."""
        (self.path / "config.yaml").write_text(config_yaml, encoding="utf-8")
        write_json(self.path / "deepspeed.json", deepspeed_json)
        write_json(self.path / "versions.json", versions())

    def set_state(self, state: str, **more: Any) -> None:
        """The run's verdict: `running`, `done`, `stopped` (resumable) or `failed`."""
        write_json(self.path / "state.json", {"state": state, "time": time.time(), **more})

    @contextmanager
    def verdict(self, *, writes: bool) -> Iterator[None]:
        """Write the verdict of what happens inside the block.

        ``writes`` for the rank that speaks; any other rank speaks only when it was interrupted, because the
        first may be the one that died.
        """
        if writes:
            self.set_state("running", process=os.getpid())
        try:
            yield
        except Interrupted as error:
            self.set_state("stopped", resumable=True, reason=str(error))
            raise
        except BaseException as error:
            if writes:
                self.set_state("failed", resumable=False, reason=f"{type(error).__name__}: {error}")
            raise
        if writes:
            self.set_state("done")

    def export(self, model: Any, weights: dict[str, Any], tokenizer_folder: Path) -> None:
        """``weights`` in the shape of ``model`` and its tokenizer, as a Hugging Face folder, in one step."""
        with durable_folder(self.model) as temporary:
            model.save_pretrained(temporary, state_dict=weights)
            for file in tokenizer_folder.iterdir():
                (temporary / file.name).write_bytes(file.read_bytes())


def versions() -> dict[str, str]:
    """Versions of what computes, and the commit of the code where it lies in a checkout."""
    found = {"python": platform.python_version(), "distill-dist": metadata.version("distill-dist")}
    found.update({package: metadata.version(package) for package in _PACKAGES})
    commit = subprocess.run(
        ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"],
        capture_output=True, text=True, timeout=10, check=False,
    )  # fmt: skip
    if commit.returncode == 0:
        found["commit"] = commit.stdout.strip()
    return found

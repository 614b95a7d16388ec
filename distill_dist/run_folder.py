"""Everything a run leaves behind lies in one folder; this file knows its layout.

config.yaml  deepspeed.json  versions.json   what ran
command.json                                 how it was started
state.json                                   the verdict, since launchers lose exit codes
logs/rank-00002.log                          one per process; a teacher's host and worker have their own
teachers/rank-00002.yaml                     what that rank's host and worker read, also when they start again
checkpoints/  tensorboard/  trace-*.jsonl    while it runs
snapshots/  plans/  served/                  of the curriculum: scores, the epoch's order, the score logs
model/                                       the best epoch as a Hugging Face folder
summary.json                                 the result
evaluation.json  predictions/                of launcher/evaluate.py
.lock                                        host and process of the run that is under way
.mark                                        by which its ranks tell that they share the folder
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import platform
import secrets
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

from distill_dist.durable import (
    durable_folder,
    hold_lock,
    is_disk_full,
    recover_folders,
    remove_stale,
    sha256_file,
    write_durable,
    write_json,
)
from distill_dist.errors import Interrupted, UserError
from distill_dist.invocation import command_typed, commit_of

BEST = "best_epoch.json"  # beside the weights
_log = logging.getLogger(__name__)
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
        self.snapshots = path / "snapshots"
        self.plans = path / "plans"
        self.served = path / "served"
        self.summary = path / "summary.json"

    def claim(self) -> str:
        """Make the folder this process's own and tidy up what a crash left. Rank 0 only, before the others look.

        Returns what :meth:`has_mark` asks for on other hosts. Raises UserError where another run is under way in it, or
        where it holds a `model` that no run wrote.
        """
        try:
            self._lock()
            self._refuse_a_strangers_model()
            self._bury()
            self._tidy()
            mark = secrets.token_hex(8)
            write_durable(self.path / ".mark", lambda temporary: temporary.write_text(mark, encoding="utf-8"))
        except OSError as error:
            raise UserError(f"run_dir={self.path} cannot be used: {error}") from error
        return mark

    def has_mark(self, mark: str, *, timeout_s: float) -> bool:
        """Whether this is the folder that another process claimed; a network's file system may take ``timeout_s``."""
        deadline = time.monotonic() + timeout_s
        while True:
            with contextlib.suppress(OSError):
                if (self.path / ".mark").read_text(encoding="utf-8") == mark:
                    return True
            if time.monotonic() > deadline:
                return False
            time.sleep(0.2)

    def _refuse_a_strangers_model(self) -> None:
        if self.model.exists() and not self._is_ours():
            raise UserError(
                f"run_dir={self.path} holds a folder `model` that no run of ours wrote, and training would replace "
                "it: choose another run_dir"
            )

    def _tidy(self) -> None:
        recover_folders(self.path, "model")
        recover_folders(self.checkpoints, "step-*")
        for pattern in ("model", "*.json", "config.yaml", "trace-*.jsonl", ".mark"):
            remove_stale(self.path, pattern)
        remove_stale(self.checkpoints, "step-*")
        remove_stale(self.path / "teachers", "rank-*.yaml")

    def _lock(self) -> None:
        """Hold `.lock` until this process ends, however it ends."""
        holder = hold_lock(self.path / ".lock")
        if holder is not None:
            raise UserError(
                f"run_dir={self.path} is in use by another run ({holder}): wait for its end, or choose another run_dir"
            )

    def _bury(self) -> None:
        """A verdict `running` of a process that died without a word: the lock proves that it is dead."""
        state = self._state()
        if state.get("state") == "running":
            reason = f"process {state.get('process', '?')} ended without a word"
            self.set_state("stopped", resumable=True, reason=reason)

    def _state(self) -> dict[str, Any]:
        try:
            found = json.loads((self.path / "state.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def _is_ours(self) -> bool:
        """Whether a run began here before: it leaves its verdict and its configuration."""
        state = self._state()
        if "state" in state and "refused" not in state:
            return True
        try:
            text = (self.path / "config.yaml").read_text(encoding="utf-8")
        except (OSError, ValueError):
            return False
        return any(line.startswith("run_dir:") for line in text.splitlines())

    def log_to_file(self, rank: int, part: str = "") -> None:
        """What that rank logs, numbers included (debug), goes to its own file; warnings and worse to stderr as well.

        ``part``: of the rank's processes, where it has several.
        """
        handler = logging.FileHandler(self.path / "logs" / f"rank-{rank:05d}{part and '-'}{part}.log")
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        console = logging.StreamHandler(sys.stderr)
        console.setLevel(logging.INFO if rank == 0 else logging.WARNING)
        console.setFormatter(
            logging.Formatter(f"{_fresh_line()}[rank {rank}{part and ' '}{part}] %(message)s")
        )
        for target in (handler, console):
            target.addFilter(lambda record: record.name.startswith("distill_dist") or record.levelno >= 30)
        logging.raiseExceptions = False  # a full disk: one message of ours, not a traceback per record
        logging.basicConfig(level=logging.INFO, handlers=[handler, console], force=True)
        logging.getLogger("distill_dist").setLevel(logging.DEBUG)

    def describe(self, *, config_yaml: str, deepspeed_json: dict[str, Any]) -> None:
        """What runs: the resolved configuration, DeepSpeed's JSON, versions and commit, and how it was started.

        How it was started first, where the same configuration goes on: what goes on may have been given that file.
        """
        path, command = self.path / "config.yaml", self.path / "command.json"
        goes_on = command.is_file() and path.is_file() and path.read_text(encoding="utf-8") == config_yaml
        write_durable(path, lambda temporary: temporary.write_text(config_yaml, encoding="utf-8"))
        write_json(self.path / "deepspeed.json", deepspeed_json)
        write_json(self.path / "versions.json", versions())
        if not goes_on:
            write_json(command, {"command": command_typed(), "folder": os.getcwd()})

    def set_state(self, state: str, **more: Any) -> None:
        """The run's verdict: `running`, `done`, `stopped` (resumable) or `failed`."""
        write_json(self.path / "state.json", {"state": state, "time": time.time(), **more})

    @contextmanager
    def verdict(self, *, writes: bool) -> Iterator[None]:
        """Write the verdict of what happens inside the block.

        ``writes`` for the rank that speaks; any other rank speaks when it fails or is interrupted, because the first
        may be the one that died, or only hear of it. What failed stands: who lost a rank that failed, or hears from
        another what is wrong, adds nothing. A full disk becomes Interrupted: it can be mended, and the run goes on.
        """
        if writes:
            self.set_state("running", process=os.getpid())
        try:
            with full_disk_interrupts():
                yield
        except (Interrupted, KeyboardInterrupt) as error:
            if self._state().get("state") != "failed":
                self._say_if_possible("stopped", resumable=True, reason=str(error) or type(error).__name__)
            raise
        except BaseException as error:
            hearsay = isinstance(error, UserError) and error.said
            if not (hearsay and self._state().get("state") == "failed"):
                reason = f"{type(error).__name__}: {error}"
                self._say_if_possible("failed", resumable=False, reason=reason)
            raise
        if writes:
            self.set_state("done")

    def refuse(self, error: UserError | Interrupted) -> None:
        """The verdict of a run that did not begin. What a run that began said here stays: this one changed nothing."""
        state = self._state()
        if state and "refused" not in state:
            return
        if isinstance(error, Interrupted):
            self._say_if_possible("stopped", resumable=True, reason=str(error), refused=True)
        else:
            reason = f"{type(error).__name__}: {error}"
            self._say_if_possible("failed", resumable=False, reason=reason, refused=True)

    def _say_if_possible(self, state: str, **more: Any) -> None:
        """``set_state``; where even that cannot be written, what ended the run stays the error that is seen."""
        try:
            self.set_state(state, **more)
        except OSError as error:
            _log.warning("the verdict `%s` cannot be written: %s", state, error)

    def export(
        self,
        model: Any,
        weights: dict[str, Any],
        save_tokenizer: Callable[[Path], None],
        *,
        best: dict[str, Any],
    ) -> dict[str, Any]:
        """``weights`` in the shape of ``model`` and its tokenizer, as a Hugging Face folder, in one step.

        ``save_tokenizer`` writes the tokenizer's files into a folder.
        ``best`` ("step", "value") and checksums, of the weights and of every other file, stand in it as well, and are
        returned.
        """
        with durable_folder(self.model) as temporary:
            model.save_pretrained(temporary, state_dict=dict(weights))  # which empties it
            save_tokenizer(temporary)
            sums = {path.name: sha256_file(path) for path in sorted(temporary.iterdir())}
            record = {**best, "sha256": sums.pop("model.safetensors"), "files": sums}
            write_json(temporary / BEST, record)
        return record


def _fresh_line() -> str:
    """What clears a terminal's line, where a progress bar may stand: this process's or another rank's."""
    return "\r\x1b[2K" if sys.stderr.isatty() else ""


@contextmanager
def full_disk_interrupts() -> Iterator[None]:
    """Turn what a full disk raises inside the block into Interrupted, which says what could not be written."""
    try:
        yield
    except OSError as error:
        if not is_disk_full(error):
            raise
        where = f" to {error.filename}" if error.filename else ""
        raise Interrupted(
            f"nothing more can be written{where}: {error.strerror}. Make room; the same command goes on from the "
            "last checkpoint"
        ) from error


def versions() -> dict[str, str]:
    """Versions of what computes, and the commit of the code where that is known."""
    found = {"python": platform.python_version()}
    for package in ("distill-dist", *_PACKAGES):
        with contextlib.suppress(metadata.PackageNotFoundError):  # ours may be found by PYTHONPATH alone
            found[package] = metadata.version(package)
    if commit := commit_of(Path(__file__).parents[1]):
        found["commit"] = commit
    return found

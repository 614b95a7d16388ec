"""A job's own copy of the code and of its configuration: what is edited while it waits changes nothing."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

from distill_dist.config.load import dump_config
from distill_dist.config.schema import RunConfig
from distill_dist.durable import durable_folder
from distill_dist.errors import UserError
from distill_dist.invocation import COMMIT, commit_of

# What a run imports and starts; data, models and runs stay where they are.
_CODE = ("distill_dist", "launcher")


def freeze(config: RunConfig, folder: Path, *, checkout: Path, twin: Path | None = None) -> None:
    """Copy the code of ``checkout``, ``config`` as config.yaml and its DeepSpeed JSON to ``folder``, all or nothing.

    A file there says which commit the code is of. ``twin``: a folder that got the same code just now; its files are
    linked where that can be, since an array of 36 tasks would otherwise write and sync 8,000 of them. Relative paths
    in the configuration stay as they are: they start where the job was submitted. Raises UserError where ``folder`` is
    there already, or does not lie in the run's own.
    """
    if not folder.resolve().is_relative_to(Path(config.run_dir).resolve()):
        raise UserError(
            f"run_dir={config.run_dir}, but the job's folder is {folder}: it must lie in run_dir. Say RUN_DIR=FOLDER "
            "before sbatch, or change run_dir in the script's first part"
        )
    if folder.exists():
        raise UserError(f"{folder} is there already: a job's code is copied once")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with durable_folder(folder) as temporary:
        for name in _CODE:
            shutil.copytree(
                (twin or checkout) / name,
                temporary / name,
                ignore=shutil.ignore_patterns("__pycache__"),
                copy_function=_link if twin else _copy,
            )
        if commit := commit_of(twin or checkout):
            (temporary / COMMIT).write_text(f"{commit}\n", encoding="utf-8")
        shutil.copyfile(config.deepspeed_config, temporary / "deepspeed.json")
        frozen = replace(config, deepspeed_config=str(folder / "deepspeed.json"))
        (temporary / "config.yaml").write_text(dump_config(frozen), encoding="utf-8")


def _copy(source: str, target: str) -> None:
    """Without its mode: a read-only checkout could not be synced."""
    shutil.copyfile(source, target)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links
        shutil.copyfile(source, target)

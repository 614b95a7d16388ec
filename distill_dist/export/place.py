"""The folder that an export becomes: complete or not at all, and never in the place of what somebody else wrote."""

from __future__ import annotations

import errno
import glob
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from distill_dist.durable import (
    durable_folder,
    is_disk_full,
    recover_folder,
    remove_stale,
    sha256_file,
    write_json,
)
from distill_dist.errors import Interrupted, UserError
from distill_dist.one_writer import one_writer

RECORD = "export.json"
FORMAT = 1
_RUST_DISK_FULL = f"os error {errno.ENOSPC}"  # how tokenizers and safetensors say it


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """An empty folder that becomes ``out`` when the block ends well; else nothing has changed.

    Raises UserError where ``out`` holds anything but an export as it was written, cannot be written, or is being
    written by another process, and where the disk fills up.
    """
    out = Path(os.path.realpath(out))
    if not out.name:
        raise UserError(f"--out {out} is no place for an export: give a folder that is not there yet")
    lock = out.with_name(f".{out.name}.lock")
    with one_writer(lock, name=f"--out {out}", kind="export"):
        recover_folder(out)
        _refuse_foreign(out)
        remove_stale(out.parent, glob.escape(out.name))
        with _telling_of_the_disk(out), durable_folder(out) as temporary:
            yield temporary


def write_record(folder: Path, record: dict[str, Any]) -> None:
    """export.json: ``record``, and the checksum of every other file in ``folder``."""
    files = {path.relative_to(folder).as_posix(): sha256_file(path) for path in _files(folder)}
    write_json(folder / RECORD, {"format": FORMAT, **record, "files": files})


def sizes(folder: Path) -> dict[str, int]:
    """Bytes of every file, by its name inside ``folder``."""
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in _files(folder)}


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if not path.is_dir())


def _refuse_foreign(out: Path) -> None:
    if not os.path.lexists(out):
        return
    if not out.is_dir():
        raise UserError(f"--out {out} is a file: give a folder that is not there yet")
    there = {path.relative_to(out).as_posix(): path for path in _files(out)}
    if not there and not any(out.iterdir()):
        return
    listed = _listed(out / RECORD)
    if listed is None:
        raise UserError(
            f"--out {out} exists and is no export of ours (it has no {RECORD}): give a folder that is not there yet"
        )
    changed = sorted(
        name for name, path in there.items() if name != RECORD and _differs(path, listed.get(name))
    )
    if changed:
        raise UserError(
            f"--out {out} would be replaced, but {', '.join(changed[:5])} in it was added or changed since the export: "
            "move that away, or give another folder"
        )


def _listed(record: Path) -> dict[str, Any] | None:
    """name -> checksum of the files of an export; None where there is none."""
    try:
        found = json.loads(record.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    ours = isinstance(found, dict) and "format" in found and isinstance(found.get("files"), dict)
    return found["files"] if ours else None


def _differs(path: Path, sha256: Any) -> bool:
    return not path.is_file() or sha256_file(path) != sha256


@contextmanager
def _telling_of_the_disk(out: Path) -> Iterator[None]:
    """A full disk is one message, in whichever library it showed itself."""
    try:
        yield
    except (UserError, Interrupted):
        raise
    except Exception as error:
        if not _is_full(error):
            raise
        raise UserError(
            f"--out {out} cannot be written: the disk is full. Nothing was left or changed; make room, then the same "
            "command"
        ) from error


def _is_full(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, OSError) and is_disk_full(error):
            return True
        if _RUST_DISK_FULL in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False

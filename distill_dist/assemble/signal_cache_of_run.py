"""The cache of a run's signals, as its configuration says."""

from __future__ import annotations

import tempfile
from pathlib import Path

from distill_dist.config.schema_teacher import TeacherConfig
from distill_dist.durable import is_disk_full, sync_folder
from distill_dist.errors import UserError
from distill_dist.teacher.signal_cache import SignalCache


def signal_cache(
    teacher: TeacherConfig, fingerprint: str, *, in_memory: bool = True, seals_itself: bool = True
) -> SignalCache:
    """Of the teacher with this ``fingerprint`` (hex); ``in_memory`` as well as on disk."""
    return SignalCache(
        teacher.cache_mib << 20 if in_memory else 0,
        Path(teacher.cache_dir) if teacher.cache_dir else None,
        context=bytes.fromhex(fingerprint),
        seals_itself=seals_itself,
        disk_bytes=teacher.cache_dir_mib << 20 if teacher.cache_dir_mib else None,
    )


def check_cache_dir(teacher: TeacherConfig) -> None:
    """Make `cache_dir` where it is missing. Raises UserError where a run that begins could not write to it.

    A disk that is full is no mistake of the configuration, and may have filled since the run began: what lies there is
    read, and DiskCache warns.
    """
    if not teacher.cache_dir:
        return
    folder = Path(teacher.cache_dir)
    if folder.exists() and not folder.is_dir():
        raise UserError(f"teacher.cache_dir={folder} is no folder: name another, or leave it away")
    try:
        if not folder.is_dir():
            folder.mkdir(parents=True, exist_ok=True)
            sync_folder(folder.parent)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        if not is_disk_full(error):
            raise UserError(
                f"teacher.cache_dir={folder} cannot be written ({error.strerror}): name another, or leave it away"
            ) from error

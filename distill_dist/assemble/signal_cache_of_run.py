"""The cache of a run's signals, as its configuration says."""

from __future__ import annotations

from pathlib import Path

from distill_dist.config.schema_teacher import TeacherConfig
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

"""What dead writers left unsealed: their records that check become a segment, and the file goes.

Recovered, and not removed: minutes of every teacher's time lie in them when a job is killed, and a process
that dies loses nothing that it had handed to the system, only the record that it was writing. What a dying
machine tore or left as zeros does not check. A host's are removed: it seals what its teacher said only once that
was found to say what it said before (sanity.py), and nobody can ask a dead one; they are computed again.

Whether a writer is dead cannot be known for certain on a disk that hosts share, so nothing depends on it
but work: the file is copied and then removed, never written to. A writer that was alive after all goes on
in a file that has no name any more, and finds that out when it seals; some signals are then computed again,
and none is wrong. These say that it is dead:

* nobody holds its lock, and it ran on this host, where locks are the kernel's own;
* nobody holds its lock, or the file system has none, and the file has not been written to for ``QUIET_S``.
  Some mounts keep locks to each host, so that a lock of another host cannot be seen. A writer that is asked
  for anything seals long before that (``SealLimits.age_s``); the half hour also covers the difference of
  two clocks.
"""

from __future__ import annotations

import itertools
import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path

from distill_dist.teacher.segment import HEADER_BYTES, DamagedSegment, OtherFormat, read_context, scan
from distill_dist.teacher.segment_writer import (
    OPEN,
    UNCHECKED,
    SegmentWriter,
    host_name,
    host_of,
    is_file,
    lock,
)

QUIET_S = 1800.0
_log = logging.getLogger(__name__)


def recover(folder: Path) -> int:
    """Turn the leftovers in ``folder`` into segments, but those that nobody vouches for, which go.

    Returns the number of records saved; or OSError of writing. Several processes may do so at once. What may not be
    opened, or is of another format, stays.
    """
    saved = 0
    for path in sorted([*folder.glob(f"*{OPEN}"), *folder.glob(f"*{UNCHECKED}")]):
        if host_of(path) is None:
            continue
        try:
            descriptor = os.open(path, os.O_RDWR)  # network disks lock only what is open for writing
        except OSError:  # somebody else saw to it just now, or owns it
            continue
        try:
            if not _is_dead(descriptor, path):
                continue
            if path.suffix == UNCHECKED:
                path.unlink(missing_ok=True)
            else:
                saved += _save(descriptor, path)
        except OtherFormat:
            continue
        finally:
            os.close(descriptor)
    return saved


def _is_dead(descriptor: int, path: Path) -> bool:
    held = lock(descriptor)
    if held is False or not is_file(descriptor, path):
        return False
    if held and host_of(path) == host_name():
        return True
    return time.time() - os.fstat(descriptor).st_mtime > QUIET_S


def _save(descriptor: int, path: Path) -> int:
    """Copy the records that can be read into a segment of our own, and remove the file."""
    records = _readable(descriptor, path)
    first = next(records, None)
    saved = 0
    if first is not None:
        writer = SegmentWriter(path.parent, read_context(descriptor))
        try:
            for key, payload in itertools.chain([first], records):
                writer.append(key, payload)
            writer.seal()
            saved = len(writer)
        except OSError:
            writer.discard()
            raise
        finally:
            writer.close()
    path.unlink(missing_ok=True)
    return saved


def _readable(descriptor: int, path: Path) -> Iterator[tuple[bytes, bytes]]:
    """The records, up to the first that does not check or cannot be read; OtherFormat."""
    if os.fstat(descriptor).st_size <= HEADER_BYTES:  # its writer died before the first record
        return
    try:
        read_context(descriptor)
        yield from scan(descriptor)
    except OtherFormat:
        raise
    except (DamagedSegment, OSError) as error:
        _log.warning("signals left by a dead process in %s are lost: %s", path, error)

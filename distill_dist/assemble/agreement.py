"""What failed on one student ends all of them for the same reason, before they would wait for each other."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError

from distill_dist.comm.students import StudentGroup
from distill_dist.durable import is_disk_full
from distill_dist.errors import Interrupted, UserError, shared_error

# What a student says beside "go on" (0) and "I was told to stop" (1); the largest word counts.
_FULL, _WRONG = 2, 3  # a disk; what the user gave


def agree_on(group: StudentGroup, failed: Exception | None, *, place: Path, stop: bool = False) -> bool:
    """Whether any student was told to stop; a collective. Raises, on all, what failed on any; one of them says it.

    ``failed`` is a UserError, or an OSError at ``place``: a full disk can be mended, and the run goes on from there.
    """
    if isinstance(failed, OSError) and not is_disk_full(failed):
        failed = UserError(f"{place} cannot be used: {failed}")
    word = int(stop) if failed is None else _FULL if isinstance(failed, OSError) else _WRONG
    agreed = group.agree(word)
    if agreed < _FULL:
        return agreed == 1
    speaker, reason = group.hear(str(failed) if word == agreed else None)
    if agreed == _FULL:
        raise Interrupted(f"{place} cannot be written ({reason}): make room; the same command then goes on")
    if failed is not None and speaker == group.rank:
        raise failed
    raise shared_error(reason, said=True)


def agree_on_start(group: StudentGroup, start: int) -> None:
    """Raises UserError, on all students, unless all go on from step ``start``; a collective."""
    last, first = group.agree(start), -group.agree(-start)
    if last != first:
        raise shared_error(
            f"students found different checkpoints, of steps from {first} to {last}: run_dir must be one folder that "
            "every host sees, and a checkpoint that only some of them can read must go",
            said=group.rank != 0,
        )


# What a full or broken disk raises while weights are written.
UNWRITTEN = (OSError, SafetensorError)


def agree_written(group: StudentGroup, failed: Exception | None, *, place: Path) -> None:
    """Raises Interrupted, on all students, where student 0 ``failed`` to write ``place``; a collective."""
    if not group.agree(int(failed is not None)):
        return
    reason = "see student 0" if failed is None else getattr(failed, "strerror", None) or str(failed)
    raise Interrupted(
        f"{place} cannot be written ({reason}): make room, or mend the disk; the same command goes on from the last "
        "checkpoint"
    ) from failed


def alone(group: StudentGroup, work: Callable[[], object], *, place: Path) -> None:
    """``work()`` on student 0; nobody goes on before it is done. Raises as :func:`agree_on`."""
    failed: Exception | None = None
    if group.rank == 0:
        try:
            work()
        except (UserError, OSError) as error:
            failed = error
    agree_on(group, failed, place=place)

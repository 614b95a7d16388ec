"""What failed on one student ends all of them for the same reason, before they would wait for each other."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from distill_dist.comm.students import StudentGroup
from distill_dist.durable import is_disk_full
from distill_dist.errors import Interrupted, UserError


def agree_on(group: StudentGroup, failed: Exception | None, *, place: Path, stop: bool = False) -> bool:
    """Whether any student was told to stop; a collective. Raises, on all, what failed on any; one of them says it.

    ``failed`` is a UserError, or an OSError at ``place``: a full disk can be mended, and the run goes on from there.
    """
    if isinstance(failed, OSError) and not is_disk_full(failed):
        failed = UserError(f"{place} cannot be used: {failed}")
    first = group.size - group.rank  # larger on the earlier student
    word = int(stop) if failed is None else 2 if isinstance(failed, OSError) else 2 + first
    agreed = group.agree(word)
    if agreed == 2:
        reason = "another student says why" if failed is None else str(failed)
        raise Interrupted(f"{place} cannot be written ({reason}): make room; the same command then goes on")
    if agreed > 2:
        error = failed if isinstance(failed, UserError) else UserError("another student says what is wrong")
        error.said = word != agreed
        raise error
    return agreed == 1


def alone(group: StudentGroup, work: Callable[[], object], *, place: Path) -> None:
    """``work()`` on student 0; nobody goes on before it is done. Raises as :func:`agree_on`."""
    failed: Exception | None = None
    if group.rank == 0:
        try:
            work()
        except (UserError, OSError) as error:
            failed = error
    agree_on(group, failed, place=place)

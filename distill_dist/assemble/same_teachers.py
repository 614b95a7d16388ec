"""Whether a run that goes on has the teachers that it began with."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from distill_dist.assemble.agreement import agree_on
from distill_dist.checkpoint import Checkpoint
from distill_dist.comm.students import StudentGroup
from distill_dist.config.pool import naming_the_model, teachers_of
from distill_dist.config.schema import RunConfig
from distill_dist.errors import UserError
from distill_dist.teacher.identity import Identity, change, read_identity

_log = logging.getLogger(__name__)


def same_teachers(
    config: RunConfig, resumed: Checkpoint | None, now: Sequence[Identity], group: StudentGroup
) -> tuple[Identity, ...]:
    """Who the checkpoints of this run are to say taught it: those of ``resumed``, else ``now``; a collective.

    The first ones stay, so that no teacher creeps away from resume to resume. Raises UserError, on all students, where
    one of them met others.
    """
    if resumed is None:
        return tuple(now)
    saved = resumed.progress.get("teachers")
    if saved is None:  # written before they stood in it
        _log.info("%s does not say who taught: whoever teaches now is taken for that", resumed.folder)
        return tuple(now)
    before, failed = tuple(map(read_identity, saved)), None
    try:
        _compare(config, before, now, checkpoint=str(resumed.folder))
    except UserError as error:
        failed = error
    agree_on(group, failed, place=resumed.folder)
    return before


def _compare(
    config: RunConfig, before: Sequence[Identity], now: Sequence[Identity], *, checkpoint: str
) -> None:
    # how many there are stands in the run's identity (resume.py)
    for number, (old, new, teacher) in enumerate(zip(before, now, teachers_of(config), strict=True)):
        reason = change(old, new)
        if reason is None:
            continue
        with naming_the_model(config, number):
            raise UserError(
                f"the teacher at {teacher.path} is not the one of {checkpoint}: {reason}. Put that one back (its "
                "folder, or the device and libraries that it had), or start in another run_dir"
            )

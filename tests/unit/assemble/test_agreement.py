from __future__ import annotations

import errno
import time
from pathlib import Path
from typing import Any

import pytest

from assemble.students import on_each, said
from distill_dist.assemble.agreement import agree_on, alone
from distill_dist.errors import Interrupted, UserError

PLACE = Path("run/snapshots")
FULL = OSError(errno.ENOSPC, "No space left on device")
DENIED = OSError(errno.EACCES, "Permission denied")


def ends(*failed: Exception | None, stop: tuple[bool, ...] = (False, False, False)) -> list[Any]:
    """How ``agree_on`` ends on students of which each failed so."""

    def call(student: Any) -> bool:
        return agree_on(student, failed[student.rank], place=PLACE, stop=stop[student.rank])

    return on_each(len(failed), call)


@pytest.mark.parametrize("asked", [(False, False, False), (False, True, False), (True, True, True)])
def test_all_stop_where_one_was_asked_to(asked: tuple[bool, ...]) -> None:
    assert ends(None, None, None, stop=asked) == [any(asked)] * 3


@pytest.mark.parametrize("rank", [0, 1, 2])
def test_what_is_wrong_on_one_student_ends_all_and_it_alone_says_so(rank: int) -> None:
    failed: list[Exception | None] = [None, None, None]
    failed[rank] = UserError("row 7 is damaged")
    found = ends(*failed, stop=(True, True, True))
    assert said(found, UserError) == ["row 7 is damaged"]
    assert found[rank] is failed[rank]
    # each of them may be the last to write the run's verdict
    assert [str(error) for error in found] == ["row 7 is damaged"] * 3


def test_the_first_of_two_says_what_is_wrong() -> None:
    found = ends(None, UserError("row 7"), UserError("row 9"))
    assert said(found, UserError) == ["row 7"]
    assert [str(error) for error in found] == ["row 7"] * 3


@pytest.mark.parametrize("rank", [0, 1])
def test_a_full_disk_of_one_student_interrupts_all(rank: int) -> None:
    failed: list[Exception | None] = [None, None]
    failed[rank] = FULL
    messages = said(ends(*failed), Interrupted)
    assert all("run/snapshots cannot be written" in message for message in messages)
    assert all("No space left on device" in message for message in messages)


def test_what_the_user_can_mend_counts_for_more_than_a_full_disk() -> None:
    assert said(ends(FULL, UserError("row 7"), FULL), UserError) == ["row 7"]


def test_any_other_failure_of_a_file_is_the_users() -> None:
    assert said(ends(None, DENIED, FULL), UserError) == [f"{PLACE} cannot be used: {DENIED}"]


def test_one_student_works_and_nobody_goes_on_before(tmp_path: Path) -> None:
    done = tmp_path / "done"

    def call(student: Any) -> list[Path]:
        def work() -> None:
            time.sleep(0.02)  # the others could be through by now
            (done / str(student.rank)).mkdir(parents=True)

        alone(student, work, place=PLACE)
        return list(done.iterdir())

    assert on_each(3, call) == [[done / "0"]] * 3


@pytest.mark.parametrize(
    ("error", "kind"), [(UserError("x"), UserError), (FULL, Interrupted), (DENIED, UserError)]
)
def test_nobody_goes_on_where_the_work_failed(error: Exception, kind: type[Exception]) -> None:
    def fail() -> None:
        raise error

    found = on_each(3, lambda student: alone(student, fail, place=PLACE))
    assert len(said(found, kind)) == (1 if kind is UserError else 3)
    assert str(getattr(error, "strerror", None) or error) in str(found[0])
